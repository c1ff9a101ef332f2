"""Absolute boxes of annotations: which are no boxes at all, and which can be no object of their image.

The first are mistakes of whoever wrote the file, and errors. The second are left out of training, never repaired: a
box of negative width could be another order of coordinates, or anything else.
"""

import math
import sys
from enum import IntEnum
from numbers import Real
from typing import Any

import numpy as np

from dinox.data.problems import shown

LEAST_SIDE = 1e-5
"""Pixels. detectron2's mappers drop what is not larger than this, without counting it."""

_GREATEST = sys.float_info.max


class BoxFault(IntEnum):
    """Why a box is left out; of several reasons the first."""

    NONE = 0
    NAN = 1
    INFINITE = 2
    NEGATIVE = 3
    NO_AREA = 4
    OUTSIDE = 5


KINDS = {
    BoxFault.NAN: "nan-box",
    BoxFault.INFINITE: "infinite-box",
    BoxFault.NEGATIVE: "negative-box",
    BoxFault.NO_AREA: "empty-box",
    BoxFault.OUTSIDE: "outside-box",
}
"""Names in reports."""

DESCRIPTIONS = {
    BoxFault.NAN: "with NaN",
    BoxFault.INFINITE: "with an infinite number",
    BoxFault.NEGATIVE: "of negative width or height",
    BoxFault.NO_AREA: "without area",
    BoxFault.OUTSIDE: "outside of the image",
}
"""After "3 boxes"."""

EXPECTATIONS = {
    BoxFault.NAN: "finite numbers",
    BoxFault.INFINITE: "finite numbers",
    BoxFault.NEGATIVE: "a width and a height that are not negative",
    BoxFault.NO_AREA: "a width and a height greater than 0",
    BoxFault.OUTSIDE: "a box that overlaps its image",
}


def classify_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The ``BoxFault`` of each box, as (N,) uint8.

    Args:
        boxes: (N, 4) absolute x, y, width, height.
        sizes: (N, 2) height and width of each box's image in pixels; NaN where they are not known.
    """
    boxes, sizes = np.asarray(boxes, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are what is looked for
        start, side = boxes[:, :2], boxes[:, 2:]
        overlap = np.minimum(start + side, sizes[:, ::-1]) - np.maximum(start, 0)
        conditions = {
            BoxFault.NAN: np.isnan(boxes).any(1),
            BoxFault.INFINITE: np.isinf(boxes).any(1),
            BoxFault.NEGATIVE: (side < 0).any(1),
            BoxFault.NO_AREA: (side <= LEAST_SIDE).any(1),
            BoxFault.OUTSIDE: (overlap <= LEAST_SIDE).any(1),
        }
    return np.select(list(conditions.values()), [np.uint8(fault) for fault in conditions], np.uint8(BoxFault.NONE))


def box_format_fault(box: Any, *, corners: bool = False) -> tuple[str, str, str] | None:
    """What is wrong with something that should be 4 numbers: (expected, got, cure), or None. NaN and infinity pass."""
    # A numpy array has a length as well; a text has one too.
    is_sequence = not isinstance(box, str) and hasattr(box, "__len__")
    if not is_sequence or len(box) != 4 or not all(_is_number(number) for number in box):
        return (f"4 numbers ({_order(corners)})", shown(box), "Fix or remove the annotations.")
    return None


def box_fault(box: Any, *, corners: bool = False) -> tuple[str, str, str] | None:
    """What is wrong with an absolute box whose image is not known: (expected, got, cure), or None.

    Boxes without area are not a fault here.

    Args:
        box: (x, y, width, height), or (x1, y1, x2, y2) if ``corners``; any sequence.
    """
    fault = box_format_fault(box, corners=corners)
    if fault:
        return fault
    if not all(math.isfinite(number) for number in box):
        return (f"4 finite numbers ({_order(corners)})", shown(box), "Fix or remove the annotations.")
    x, y, right, bottom = box
    if right < (x if corners else 0) or bottom < (y if corners else 0):
        cure = f"Write boxes as {_order(corners)}, or remove the annotations."
        return (EXPECTATIONS[BoxFault.NEGATIVE], shown(box), cure)
    return None


def _order(corners: bool) -> str:
    return "x1, y1, x2, y2" if corners else "x, y, width, height"


def _is_number(value: Any) -> bool:
    if isinstance(value, int):  # of any length, in a json
        return not isinstance(value, bool) and abs(value) <= _GREATEST
    return isinstance(value, Real)
