"""Annotations of images as they are stored, turned to the images as EXIF shows them.

Frames have their origin in the upper left corner; ``width`` and ``height`` are always those of the stored image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from dinox.data.problems import shown

_MASK_TURNS = {
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: lambda mask: np.rot90(mask, 1),
}


def turn_points(points: np.ndarray, *, width: float, height: float, orientation: int) -> np.ndarray:
    """(N, 2) x, y of the stored image -> of the shown one, for the orientations that swap width and height (5 to 8)."""
    x, y = points[:, 0], points[:, 1]
    turned = {
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }
    return np.stack(turned[orientation], axis=1)


def turn_box(box: Sequence[float], *, width: float, height: float, orientation: int) -> list[float]:
    """x, y, width, height -> the same of the shown image."""
    x, y, box_width, box_height = box
    corners = np.array([[x, y], [x + box_width, y + box_height]], dtype=float)
    corners = turn_points(corners, width=width, height=height, orientation=orientation)
    low = corners.min(0)
    return _plain([*low, box_height, box_width])


def turn_annotation(annotation: dict, *, width: int, height: int, orientation: int) -> dict[str, str]:
    """Turn box, polygons, mask and keypoints of a COCO annotation, in place.

    Returns the fields that are malformed, and stay as they are, with the reason.
    """
    frame = {"width": width, "height": height, "orientation": orientation}
    annotation["bbox"] = turn_box(annotation["bbox"], **frame)
    faults = {}
    for name, turn in (("segmentation", _turn_segmentation), ("keypoints", _turn_keypoints)):
        if not annotation.get(name):
            continue
        try:
            annotation[name] = turn(annotation[name], **frame)
        except Exception as error:  # numpy and pycocotools raise nearly anything
            faults[name] = f"{type(error).__name__}: {error}"
    return faults


def _turn_segmentation(segmentation: Any, *, width: int, height: int, orientation: int) -> Any:
    if isinstance(segmentation, dict):
        return _turn_mask(segmentation, orientation)
    if not isinstance(segmentation, list):
        raise TypeError(f"expected polygons or a mask, got {shown(segmentation)}")
    return [_turn_polygon(each, width=width, height=height, orientation=orientation) for each in segmentation]


def _turn_polygon(polygon: Any, **frame: int) -> Any:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return polygon  # no polygon before, none after
    return _plain(turn_points(np.array(polygon, dtype=float).reshape(-1, 2), **frame).ravel())


def _turn_keypoints(keypoints: list, *, width: int, height: int, orientation: int) -> list:
    """x, y, visibility, ...; x and y are indices of pixels, 0 to size - 1. Those that are not labelled stay 0."""
    table = np.array(keypoints, dtype=float).reshape(-1, 3)
    turned = turn_points(table[:, :2], width=width - 1, height=height - 1, orientation=orientation)
    table[:, :2] = np.where(table[:, 2:] > 0, turned, table[:, :2])
    return _plain(table.ravel())


def _turn_mask(segmentation: dict, orientation: int) -> dict:
    """Run lengths stay as they were, compressed or not."""
    counts = segmentation["counts"]
    rle = mask_util.frPyObjects(segmentation, *segmentation["size"]) if isinstance(counts, list) else segmentation
    mask = np.asfortranarray(_MASK_TURNS[orientation](mask_util.decode(rle)))
    if isinstance(counts, list):
        return {"size": list(mask.shape), "counts": _run_lengths(mask)}
    encoded = mask_util.encode(mask)
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed form: lengths of runs in column order, beginning with zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *changes, len(flat)]).tolist()
    return [0, *lengths] if flat[0] else lengths


def _plain(values: Sequence[float]) -> list[float]:
    """Python's own numbers, integers where they are whole."""
    return [int(value) if float(value).is_integer() else float(value) for value in values]
