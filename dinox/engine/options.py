"""Settings of ``train`` that belong together, such as ``train.ema``: read and checked before anything is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf

from dinox.engine.settings import SettingError
from dinox.utils.suggest import did_you_mean

Mode = Literal["max", "min"]

DEFAULT_METRIC = "bbox/AP"

_Options = TypeVar("_Options", "EmaOptions", "BestCheckpointOptions", "EarlyStoppingOptions")


@dataclass(frozen=True)
class EmaOptions:
    """``train.ema``, see ``WeightAverage``."""

    KEY = "train.ema"

    enabled: bool = False
    decay: float = 0.9997
    warmup: int = 2000

    def check(self) -> None:
        _check(self, "decay", 0 <= self.decay < 1, "a number from 0 to below 1, such as 0.9997")
        _check(self, "warmup", self.warmup >= 0, "a whole number of steps, 0 for none")


@dataclass(frozen=True)
class BestCheckpointOptions:
    """``train.best_checkpoint``, see ``Evaluations``."""

    KEY = "train.best_checkpoint"

    enabled: bool = False
    metric: str = DEFAULT_METRIC
    mode: Mode = "max"

    def check(self) -> None:
        _check_goal(self)


@dataclass(frozen=True)
class EarlyStoppingOptions:
    """``train.early_stopping``, see ``Evaluations``."""

    KEY = "train.early_stopping"

    enabled: bool = False
    metric: str = DEFAULT_METRIC
    mode: Mode = "max"
    patience: int = 5
    min_delta: float = 0.0

    def check(self) -> None:
        _check_goal(self)
        _check(self, "patience", self.patience >= 1, "a whole number of evaluations, at least 1")
        _check(self, "min_delta", 0 <= self.min_delta < math.inf, "a number of at least 0")


ALL = (EmaOptions, BestCheckpointOptions, EarlyStoppingOptions)


def read_options(cfg: DictConfig, kind: type[_Options]) -> _Options | None:
    """What a LazyConfig says; None where it says nothing, or that it is not wanted.

    Raises ValueError for names that there are none of, and values that make no sense, wanted or not.
    """
    node = OmegaConf.select(cfg, kind.KEY)
    if node is None:
        return None
    if not isinstance(node, Mapping):
        raise ValueError(f"{kind.KEY}: expected settings such as {{enabled: true}}, got {node!r}")
    known = {field.name: field.type for field in fields(kind)}
    for name, value in node.items():
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise SettingError(f"{kind.KEY}.{name}", f"there is no such setting.{hint} There are {', '.join(known)}")
        if not _is_a(value, known[name]):
            raise SettingError(f"{kind.KEY}.{name}", f"expected {_TYPES.get(known[name], 'text')}, got {value!r}")
    options = kind(**node)
    options.check()
    return options if options.enabled else None


_TYPES = {bool: "true or false", int: "a whole number", float: "a number"}


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        kind = (int, float)
    elif kind not in _TYPES:
        kind = str
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_goal(options: BestCheckpointOptions | EarlyStoppingOptions) -> None:
    _check(options, "metric", options.metric.strip() != "", "the name of a metric, such as bbox/AP")
    _check(options, "mode", options.mode in get_args(Mode), f"one of {', '.join(get_args(Mode))}")


def _check(options: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{options.KEY}.{name}: expected {expected}, got {getattr(options, name)!r}")


def check_options(cfg: DictConfig) -> None:
    """All of them. Raises ValueError, see ``read_options``; or because something is wanted that never happens."""
    for kind in ALL:
        read_options(cfg, kind)
    if read_options(cfg, EarlyStoppingOptions) is not None:
        if OmegaConf.select(cfg, "dataloader.evaluator") is None:
            raise ValueError(
                f"{EarlyStoppingOptions.KEY}.enabled=True: training can only stop by a metric that is measured, and "
                "the config has no dataloader.evaluator. Give one, or switch this off"
            )
        period, end = (OmegaConf.select(cfg, f"train.{name}") for name in ("eval_period", "max_iter"))
        if period is not None and (period == 0 or (end is not None and period >= end)):
            raise ValueError(
                f"{EarlyStoppingOptions.KEY}.enabled=True: with train.eval_period={period} there is no evaluation "
                f"before the end, train.max_iter={end}. Give a shorter period in iterations, or switch this off"
            )
