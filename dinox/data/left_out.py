"""Leaving out annotations whose boxes can be no object, and counting them."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils import comm

from dinox.data.boxes import DESCRIPTIONS, BoxFault, classify_boxes
from dinox.data.coco_json import most_bad_boxes
from dinox.data.errors import DataError
from dinox.data.problems import listed

logger = logging.getLogger(__name__)


LEFT_OUT = "left_out"
"""The key of a dict that says which boxes it lost, for the list of what training skipped."""


class DatasetDicts(list):
    """The dicts to train on. left_out: of all images that lost boxes, path, id and what they lost, whether they are
    still among the dicts or not."""

    def __init__(self, dicts: Iterable[dict], *, left_out: Sequence[tuple[str, Any, str]]) -> None:
        super().__init__(dicts)
        self.left_out = list(left_out)


def entries_left_out(dicts: Sequence[dict]) -> list[tuple[str, Any, str]]:
    """Path, id and what they lost, of all images that lost boxes."""
    if isinstance(dicts, DatasetDicts):
        return dicts.left_out
    return [(each["file_name"], each.get("image_id", ""), each[LEFT_OUT]) for each in dicts if LEFT_OUT in each]


def leave_out_bad_boxes(name: str, dicts: Sequence[dict], *, max_bad_boxes: float) -> Sequence[dict]:
    """The dicts of a dataset in detectron2's format, without annotations whose boxes can be no object.

    Those have a width or a height that is negative or 0, a NaN or infinite number, or lie outside of their image. They
    are left out, never repaired, and counted in the log. The dicts are not changed; the new ones say under ``LEFT_OUT``
    what they lost.

    Args:
        name: of the dataset, for messages.
        max_bad_boxes: how many may be left out, see ``dinox.data.coco_json.most_bad_boxes``.

    Raises DataError if there are more.
    """
    annotations = [annotation for record in dicts for annotation in record.get("annotations", ())]
    allowed = most_bad_boxes(len(annotations), max_bad_boxes)
    if not annotations:
        return dicts
    faults = classify_boxes(_boxes_xywh(annotations), _image_sizes(dicts))
    bad = int((faults != BoxFault.NONE).sum())
    if bad == 0:
        return dicts
    kept, bad_images = _without(dicts, faults)
    summary = (
        f"{bad} of {len(annotations)} annotations of dataset {name!r} have boxes that can be no object: "
        f"{_counted(faults)} (images {listed(bad_images, total=len(bad_images))})"
    )
    if bad > allowed:
        raise DataError(
            f"{summary}; max_bad_boxes={max_bad_boxes:g} allows {allowed}. Correct or remove them, or raise "
            f"max_bad_boxes of the config's dataset."
        )
    if comm.is_main_process():
        logger.warning("%s. They are left out; dinox check-data lists them.", summary)
    return kept


def _boxes_xywh(annotations: Sequence[dict]) -> np.ndarray:
    """(N, 4) x, y, width, height."""
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    corners = np.array([annotation["bbox_mode"] == BoxMode.XYXY_ABS for annotation in annotations])
    with np.errstate(invalid="ignore"):  # infinity - infinity
        boxes[corners, 2:] -= boxes[corners, :2]
    return boxes


def _image_sizes(dicts: Sequence[dict]) -> np.ndarray:
    """(N, 2) height and width of each annotation's image; NaN where a dict has none."""
    sizes = np.array(
        [[record.get("height", np.nan), record.get("width", np.nan)] for record in dicts], dtype=np.float64
    )
    return sizes.repeat([len(record.get("annotations", ())) for record in dicts], axis=0)


def _counted(faults: np.ndarray) -> str:
    counts = Counter(BoxFault(fault) for fault in faults.tolist())
    return ", ".join(f"{counts[fault]} {DESCRIPTIONS[fault]}" for fault in DESCRIPTIONS if counts[fault])


def _without(dicts: Sequence[dict], faults: np.ndarray) -> tuple[list[dict], list]:
    """Records without their bad annotations, and the ids of the images that had any."""
    kept, images, position = [], [], 0
    for record in dicts:
        annotations = record.get("annotations", ())
        own = faults[position : position + len(annotations)]
        position += len(annotations)
        if own.any():
            images.append(record.get("image_id", record["file_name"]))
            left = [annotation for annotation, fault in zip(annotations, own) if fault == BoxFault.NONE]
            record = {**record, "annotations": left, LEFT_OUT: f"boxes left out: {_counted(own)}"}
        kept.append(record)
    return kept, images
