"""The learning rate for another batch size than the recipe's: ``train.lr_scaling``, off by default.

| rule | learning rates are multiplied by | source |
|---|---|---|
| None | 1 | |
| "linear" | batch / reference | Goyal et al. 2017, "Accurate, large minibatch SGD" |
| "sqrt" | its square root | Krizhevsky 2014, "One weird trick"; for Adam: Malladi et al. 2022 |

The batch is ``dataloader.train.total_batch_size``: what the optimizer sees, of all ranks and all accumulation steps.
Schedules are in epochs and need no scaling.

A resumed run has the learning rate that the rule says for its own batch, also where that or the rule has changed: a log
line says so. The rate before scaling is a setting of the run, which cannot change.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig, OmegaConf

from dinox.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)

Rule = Literal["linear", "sqrt"]
UNSCALED_LR = "unscaled_lr"
"""Key of a parameter group, also in checkpoints: its learning rate in the config."""

_SETTING = "train.lr_scaling"
_KEYS = ("rule", "reference_batch_size")


@dataclass(frozen=True)
class LRScaling:
    """factor: of all learning rates. reason: of the factor, for the log."""

    factor: float = 1.0
    reason: str = f"{_SETTING}.rule=null"

    @classmethod
    def of(cls, cfg: DictConfig) -> "LRScaling":
        """As the config says; a config without ``train.lr_scaling`` scales nothing.

        Raises ValueError naming the key that cannot be.
        """
        settings = OmegaConf.select(cfg, _SETTING)
        if settings is None:
            return cls()
        rule, reference = _checked(settings)
        if rule is None:
            return cls()
        batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
        if batch is None:
            raise ValueError(f"{_SETTING}.rule={rule}: the config has no dataloader.train.total_batch_size to scale by")
        ratio = batch / reference
        reason = f"{_SETTING}.rule={rule}, batches of {batch} images instead of {reference}"
        return cls(ratio if rule == "linear" else math.sqrt(ratio), reason)

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the learning rates that the optimizer was built with. Once, before a schedule is made for it."""
        if self == LRScaling():
            return
        before = _greatest(optimizer.param_groups)
        for group in optimizer.param_groups:
            group[UNSCALED_LR] = group["lr"]
            group["lr"] = group["lr"] * self.factor
        optimizer.defaults["lr"] = optimizer.defaults["lr"] * self.factor
        logger.info("Learning rate %g -> %g: %s", before, _greatest(optimizer.param_groups), self.reason)

    def apply_to_resumed(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer with the state of a checkpoint the rates of this run, where those are others."""
        changed = False
        for group in optimizer.param_groups:
            before, unscaled = group.get("initial_lr", group["lr"]), unscaled_lr(group)
            wanted = unscaled * self.factor
            if before != wanted:
                changed = True
                group[UNSCALED_LR], group["initial_lr"] = unscaled, wanted
                group["lr"] = group["lr"] * (wanted / before)
        if changed:
            logger.warning("Resuming with other learning rates than the checkpoint's: %s", self.reason)


def unscaled_lr(group: Mapping[str, Any]) -> float:
    """The learning rate of a parameter group in the config, before scaling and before the schedule."""
    return group.get(UNSCALED_LR, group.get("initial_lr", group["lr"]))


def _greatest(groups: Sequence[Mapping[str, Any]]) -> float:
    return max(float(group["lr"]) for group in groups)


def _checked(settings: Any) -> tuple[Rule | None, int]:
    if not isinstance(settings, Mapping | DictConfig):
        raise ValueError(f"{_SETTING}: expected {{rule: ..., reference_batch_size: ...}}, got {settings!r}")
    unknown = [key for key in settings if key not in _KEYS]
    if unknown:
        raise ValueError(f"{_SETTING} has no {unknown[0]!r}, only {', '.join(_KEYS)}.{did_you_mean(unknown[0], _KEYS)}")
    rule, reference = settings.get("rule"), settings.get("reference_batch_size", 16)
    if rule is not None and rule not in get_args(Rule):
        choices = ", ".join(map(repr, get_args(Rule)))
        raise ValueError(f"{_SETTING}.rule: expected {choices} or null, got {rule!r}")
    if not isinstance(reference, int) or isinstance(reference, bool) or reference < 1:
        raise ValueError(
            f"{_SETTING}.reference_batch_size: expected the number of images of the batch that optimizer.lr was chosen "
            f"for, got {reference!r}"
        )
    return rule, reference
