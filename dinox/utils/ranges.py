"""Numbers of the user that have to lie in a range."""

import math
from numbers import Integral, Real
from typing import Any


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ValueError naming the argument if ``value`` is no number in [low, high]; NaN and True are none."""
    if not is_number(value) or not low <= value <= high:
        expected = f"must be at least {low}" if high == math.inf else f"must lie in [{low}, {high}]"
        raise ValueError(f"{name} {expected}, got {value!r}")


def check_whole(name: str, value: int, least: int) -> None:
    """Raises ValueError naming the argument if ``value`` is no whole number of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
