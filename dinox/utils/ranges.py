"""Numbers of the user that have to lie in a range."""

import math


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ValueError naming the argument if ``value`` is not in [low, high]; NaN is not."""
    if not low <= value <= high:
        expected = f"must be at least {low}" if high == math.inf else f"must lie in [{low}, {high}]"
        raise ValueError(f"{name} {expected}, got {value}")
