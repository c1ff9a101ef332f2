"""The keys of ``train`` in a LazyConfig, and what may stand there: a config file is a program that no one checks.

Sections with readers of their own (``ema``, ``compile``, ...) are checked there; here are their names. A config may
lack any key, and have keys of its own, for its own script, as long as they are not spelt almost as one of these.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.parallel import DistributedDataParallel

from dinox.config import ConfigError
from dinox.config.values import shown
from dinox.engine.trainer import AUTOCAST_DTYPES
from dinox.utils.suggest import closest, did_you_mean

_MISSPELT = 0.8
"""difflib's ratio from which on a key of one's own is taken for a misspelt one: eval_only is none, eval_perod is."""

_SEEDS = 2**32
"""numpy takes as many, of which every rank has one of its own."""


class SettingError(ConfigError):
    """Of a setting whose ``key`` is known, so that its line in a config file can be found."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key = key


@dataclass(frozen=True)
class Value:
    """expected: in words. fits: says whether a value is that. may_be_null: None, like no key at all, is fine too."""

    expected: str
    fits: Callable[[Any], bool]
    may_be_null: bool = False

    def check(self, key: str, value: Any) -> None:
        if not self.fits(value) and not (value is None and self.may_be_null):
            raise SettingError(key, f"expected {self.expected}, got {shown(value)}")


@dataclass(frozen=True)
class Section:
    """keys: what it holds. others: what else it holds, unchecked. is_closed: there is no other key than these."""

    keys: Mapping[str, Value | Section]
    others: frozenset[str] = field(default_factory=frozenset)
    is_closed: bool = True

    def check(self, key: str, value: Any) -> None:
        if value is None:  # like no section at all
            return
        known = [*self.keys, *sorted(self.others)]
        if not isinstance(value, Mapping):
            raise SettingError(key, f"expected a section with {', '.join(known)}, got {value!r}")
        for name in value:
            if name in known:
                continue
            if self.is_closed or closest(str(name), known, cutoff=_MISSPELT):
                hint = did_you_mean(str(name), known)
                own = "" if self.is_closed else ". A key of your own needs a name that is less like these"
                raise SettingError(f"{key}.{name}", f"there is no such key.{hint} There are {', '.join(known)}{own}")
        for name, expected in self.keys.items():
            if name in value and not _is_missing(value, name):
                expected.check(f"{key}.{name}", read(value, name, key=f"{key}.{name}"))


def _is_missing(node: Mapping, name: str) -> bool:
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _at_least(least: int, *, may_be_null: bool = False) -> Value:
    expected = f"a whole number of at least {least}"
    return Value(expected, lambda value: _is_whole(value) and value >= least, may_be_null)


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


_SWITCH = Value("true or false", lambda value: isinstance(value, bool))
_SWITCH_OR_NULL = Value(_SWITCH.expected, _SWITCH.fits, may_be_null=True)
_OF_DDP = frozenset(inspect.signature(DistributedDataParallel).parameters) - {"module", "device_ids"}

TRAIN = Section(
    {
        "output_dir": Value("a folder", lambda value: _is_text(value) and str(value) != ""),
        "init_checkpoint": Value("a file, a URL or ''", _is_text, may_be_null=True),
        "allow_partial": _SWITCH_OR_NULL,
        "max_iter": _at_least(1),
        "accumulation_steps": _at_least(1, may_be_null=True),
        "amp": Section(
            {
                "enabled": _SWITCH,
                "dtype": Value(f"one of {', '.join(AUTOCAST_DTYPES)}", lambda value: value in AUTOCAST_DTYPES),
                # No null: a run whose gradients overflow for ever ends at some time.
                "max_skips_in_a_row": Value("a whole number of at least 1 (a large one is no limit)", _is_positive),
            },
            is_closed=False,
        ),
        "deterministic": _SWITCH_OR_NULL,
        # detectron2's create_ddp_model gives DDP all but the last of these.
        "ddp": Section(
            {
                "broadcast_buffers": _SWITCH,
                "find_unused_parameters": _SWITCH,
                "gradient_as_bucket_view": _SWITCH,
                "static_graph": _SWITCH,
                "fp16_compression": _SWITCH,
            },
            others=_OF_DDP - {"broadcast_buffers", "find_unused_parameters", "gradient_as_bucket_view", "static_graph"},
        ),
        "use_ema_weights": _SWITCH_OR_NULL,
        "checkpointer": Section({"period": _at_least(1), "max_to_keep": _at_least(1, may_be_null=True)}),
        "eval_period": _at_least(0),  # 0: none before the end
        "matching_metrics": Section(
            {
                "enabled": _SWITCH,
                "period": _at_least(0),
                "num_images": _at_least(1, may_be_null=True),
                "top_k": _at_least(1),
            }
        ),
        "log_period": _at_least(1),
        "device": Value("'cpu' or 'cuda'", lambda value: isinstance(value, str)),
        "seed": Value(
            f"a whole number below {_SEEDS - 1}, or -1 for another one each time",
            lambda value: _is_whole(value) and value <= _SEEDS - comm.get_world_size(),
        ),
    },
    others=frozenset(
        {
            "lr_scaling",
            "compile",
            "activation_checkpointing",
            "ema",
            "best_checkpoint",
            "early_stopping",
            "parallel",
            "timeout",
            "non_finite",
        }
    ),
    is_closed=False,
)


def check_train_keys(cfg: DictConfig) -> None:
    """Of ``train`` in a LazyConfig. Raises SettingError: a key that is misspelt, or a value of the wrong kind."""
    TRAIN.check("train", read(cfg, "train", key="train"))


def check_optimizer_numbers(cfg: DictConfig) -> None:
    """Raises SettingError naming one that no optimizer takes."""
    for name in ("lr", "weight_decay"):
        value = select(cfg, f"optimizer.{name}")
        if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
            raise SettingError(f"optimizer.{name}", f"expected a number of at least 0, got {value!r}")


def select(cfg: DictConfig, key: str) -> Any:
    """The value of a dotted key, None without one. Raises SettingError if it is to be computed and cannot be."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException as error:
        raise SettingError(key, _reason(error)) from error


def read(node: Mapping, name: str, *, key: str) -> Any:
    """A member of a config. ``key``: its whole key. Raises SettingError as ``select``."""
    try:
        return node.get(name)
    except OmegaConfBaseException as error:
        raise SettingError(key, _reason(error)) from error


def _reason(error: OmegaConfBaseException) -> str:
    """In a line, without what is omegaconf's own: ``ValueError raised while resolving interpolation: ...``."""
    return str(error).splitlines()[0].rpartition("raised while resolving interpolation: ")[2]
