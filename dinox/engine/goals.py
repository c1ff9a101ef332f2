"""What a run is to reach: the best value of a metric, and whether to go on for it."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dinox.engine.options import BestCheckpointOptions, EarlyStoppingOptions, Mode
from dinox.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)

_SHOWN = 40  # names of metrics in a message


class BestValue:
    """The best value of a metric so far, and how many evaluations have not been better since.

    A value that is not finite is never better than another, nor than none.

    Args:
        setting: what messages call it.
        metric: a name among ``evaluate_model``'s, such as ``bbox/AP``.
        mode: "max" or "min".
        min_delta: a value is better by more than that, or it is not.
    """

    def __init__(self, *, setting: str, metric: str, mode: Mode, min_delta: float = 0.0):
        self.setting, self.metric, self.mode, self.min_delta = setting, metric, mode, min_delta
        self.value: float | None = None
        self.iterations: int | None = None
        """Done when it was measured."""
        self.waited = 0

    @classmethod
    def of(cls, options: BestCheckpointOptions | EarlyStoppingOptions) -> "BestValue":
        return cls(
            setting=options.KEY,
            metric=options.metric,
            mode=options.mode,
            min_delta=getattr(options, "min_delta", 0.0),
        )

    def read(self, results: Mapping[str, float]) -> float:
        """The metric's value. Raises ValueError that names those there are."""
        if self.metric not in results:
            raise unknown_metric(self.setting, self.metric, list(results))
        return float(results[self.metric])

    def is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        gain = value - self.value if self.mode == "max" else self.value - value
        return gain > self.min_delta

    def update(self, value: float, iterations: int) -> bool:
        """Whether it is the best one now."""
        if not self.is_better(value):
            self.waited += 1
            return False
        self.value, self.iterations, self.waited = value, iterations, 0
        return True

    def __str__(self) -> str:
        best = "without any" if self.value is None else f"{self.value:.4f}, after {self.iterations} iterations"
        return f"{self.metric} {best}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "mode": self.mode,
            "value": self.value,
            "iterations": self.iterations,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if (state["metric"], state["mode"]) != (self.metric, self.mode):
            logger.warning(
                "%s: the run went by %s (%s) before it was resumed and goes by %s (%s) now: no value is the best yet",
                self.setting,
                state["metric"],
                state["mode"],
                self.metric,
                self.mode,
            )
            return
        self.value, self.iterations, self.waited = state["value"], state["iterations"], state["waited"]


def unknown_metric(setting: str, metric: str, known: Sequence[str]) -> ValueError:
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    listed = f"{', '.join(known[:_SHOWN])}{more}" if known else "none at all"
    return ValueError(
        f"{setting}.metric: evaluation gives no {metric!r}.{did_you_mean(metric, known)} There are {listed}. Take one "
        f"of them, or switch it off with {setting}.enabled=False"
    )
