"""What is in a dataset, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dinox.data.boxes import BoxFault, classify_boxes
from dinox.data.coco_problems import box_table, image_sizes, is_id

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits of an object's area in pixels."""

_TOLERANCE = 1.0
"""Pixels that a box may stick out of its image before it is mentioned: annotation tools round."""


class ObjectTable:
    """The annotations of a json that have a known image, a known category and 4 numbers; N rows.

    rows: their positions in the json. boxes: (N, 4) x, y, width, height. frames: (N, 2) height and width of the image.
    image, category: (N,) positions in ``image_ids`` and ``category_ids`` (sorted: the class index). crowd: (N,) bool.
    usable: (N,) bool, boxes that training keeps, other than crowds.
    """

    def __init__(self, coco: dict):
        sizes = image_sizes(coco)
        categories = [c for c in coco["categories"] if isinstance(c, dict) and is_id(c.get("id"))]
        self.image_ids = list(sizes)
        self.sizes = np.array(list(sizes.values()), dtype=np.float64).reshape(-1, 2)  # (images, 2) height, width
        self.category_ids = sorted({c["id"] for c in categories}, key=lambda i: (isinstance(i, str), i))
        self.category_names = {c["id"]: str(c.get("name")) for c in categories}
        self.rows, self.boxes, self.frames = box_table(coco["annotations"], sizes)
        entries = [coco["annotations"][row] for row in self.rows]
        image_index = {i: index for index, i in enumerate(self.image_ids)}
        category_index = {i: index for index, i in enumerate(self.category_ids)}
        self.image = np.array([image_index[entry["image_id"]] for entry in entries], dtype=np.int64)
        self.category = np.array(
            [_index(category_index, entry.get("category_id")) for entry in entries], dtype=np.int64
        )
        self.crowd = np.array([bool(entry.get("iscrowd")) for entry in entries], dtype=bool)
        self.usable = (classify_boxes(self.boxes, self.frames) == BoxFault.NONE) & (self.category >= 0) & ~self.crowd

    @cached_property
    def objects_per_image(self) -> np.ndarray:
        """(images,) what training would see."""
        return np.bincount(self.image[self.usable], minlength=len(self.image_ids))

    @cached_property
    def annotations_per_image(self) -> np.ndarray:
        """(images,) crowds and useless boxes included."""
        return np.bincount(self.image, minlength=len(self.image_ids))

    @cached_property
    def objects_per_class(self) -> np.ndarray:
        """(classes,)"""
        return np.bincount(self.category[self.usable], minlength=len(self.category_ids))

    def partly_outside(self) -> np.ndarray:
        """(N,) bool: boxes that training keeps and cuts off at the image's edge."""
        ends = self.boxes[:, :2] + self.boxes[:, 2:]
        beyond = (ends > self.frames[:, ::-1] + _TOLERANCE) | (self.boxes[:, :2] < -_TOLERANCE)
        return self.usable & beyond.any(1)


def _index(positions: dict[Any, int], key: Any) -> int:
    return positions.get(key, -1) if is_id(key) else -1


@dataclass(frozen=True)
class Spread:
    """Least, median, 99th percentile and greatest of some numbers."""

    least: float
    median: float
    percentile_99: float
    greatest: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread | None:
        values = values[np.isfinite(values)]
        if len(values) == 0:
            return None
        return cls(*(float(value) for value in np.percentile(values, [0, 50, 99, 100], method="nearest")))


@dataclass(frozen=True)
class ClassCount:
    """One class: its index in the model, its category id and name, and its objects other than crowds."""

    index: int
    category_id: Any
    name: str
    objects: int


@dataclass(frozen=True)
class Statistics:
    """objects: annotations that training keeps, other than crowds; the spreads of what is an object or an image.

    small, medium, large: objects by COCO's limits. aspect_ratio: longer by shorter side of the images. most_elongated,
    largest_image: ids.
    """

    images: int
    annotations: int
    objects: int
    crowds: int
    images_without_objects: int
    classes: tuple[ClassCount, ...]
    objects_per_image: Spread | None
    width: Spread | None
    height: Spread | None
    aspect_ratio: Spread | None
    most_elongated: Any
    largest_image: Any
    small: int
    medium: int
    large: int


def count(coco: dict, table: ObjectTable) -> Statistics:
    areas = table.boxes[table.usable, 2:].prod(1)
    known = np.isfinite(table.sizes).all(1)
    ratios = np.where(known, table.sizes.max(1, initial=1) / table.sizes.min(1, initial=np.inf), 0)
    pixels = np.where(known, table.sizes.prod(1), 0)
    return Statistics(
        images=len(coco["images"]),
        annotations=len(coco["annotations"]),
        objects=int(table.usable.sum()),
        crowds=int(table.crowd.sum()),
        images_without_objects=int((table.objects_per_image == 0).sum()),
        classes=tuple(
            ClassCount(index, category_id, table.category_names[category_id], int(objects))
            for index, (category_id, objects) in enumerate(zip(table.category_ids, table.objects_per_class))
        ),
        objects_per_image=Spread.of(table.objects_per_image.astype(float)),
        width=Spread.of(table.sizes[:, 1]),
        height=Spread.of(table.sizes[:, 0]),
        aspect_ratio=Spread.of(ratios[known]),
        most_elongated=table.image_ids[int(ratios.argmax())] if known.any() else None,
        largest_image=table.image_ids[int(pixels.argmax())] if known.any() else None,
        small=int((areas < SMALL).sum()),
        medium=int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
        large=int((areas >= MEDIUM).sum()),
    )
