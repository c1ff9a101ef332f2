"""Splits of a dataset's classes into known and unknown ones."""

import numpy as np


def split_classes(num_classes: int, *, known_share: float, seed: int) -> dict[str, list[int]]:
    """{"known": [...], "unknown": [...]}: class indices, sorted; the same for the same arguments, everywhere.

    known_share: of the classes, rounded to whole ones; at least one is known and one unknown.
    """
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
        raise ValueError(f"num_classes: expected a whole number of at least 2 to split, got {num_classes!r}")
    if not 0 < known_share < 1:
        raise ValueError(f"known_share: expected a number between 0 and 1, got {known_share!r}")
    # RandomState's numbers are promised never to change; those of numpy's newer generators may.
    order = np.random.RandomState(seed).permutation(num_classes).tolist()
    num_known = min(max(round(known_share * num_classes), 1), num_classes - 1)
    return {"known": sorted(order[:num_known]), "unknown": sorted(order[num_known:])}
