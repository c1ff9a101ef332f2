"""Detections as COCO's results: one json that pycocotools and detectron2 score, written while images go by."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from detectron2.structures import Instances

from dinox.data import DataError
from dinox.data.coco_json import read_coco_json
from dinox.inference.inputs import Input
from dinox.utils.json_files import write_json
from dinox.utils.suggest import did_you_mean
from dinox.utils.whole_files import written_whole

Append = Callable[[Any], None]


@contextmanager
def json_list(path: str | os.PathLike) -> Iterator[Append]:
    """Gives a function that appends an entry to a json list. The file is there, whole, when the block has ended."""
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "[\n"

        def append(entry: Any) -> None:
            nonlocal separator
            file.write(separator + json.dumps(entry))
            separator = ",\n"

        yield append
        file.write("[]\n" if separator == "[\n" else "\n]\n")


class CocoTable:
    """The ids that results refer to.

    Args:
        class_names: of the model, by class index.
        category_ids: by class index; by default 1, 2, ...
        images_json: a COCO json whose images and categories are meant: images by ``file_name``, categories by name. By
            default images are numbered from 1, and ``write_images`` says which is which.

    Raises DataError if the json lacks a class of the model.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        images_json: str | os.PathLike | None = None,
    ):
        self._class_names = class_names
        self._category_ids = list(range(1, len(class_names) + 1) if category_ids is None else category_ids)
        self._json_file = images_json
        self._ids_by_name: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        self._images: list[dict] = []
        if images_json is not None:
            self._read(images_json)

    def check(self, inputs: Sequence[Input]) -> None:
        """Raises DataError for images that the json does not have, or has more than once under such a name."""
        if self._json_file is None:
            return
        for file in inputs:
            self._find(file.path)

    def image_id(self, path: str, *, height: int, width: int) -> int:
        """Of an image whose detections are going to be written; numbers are given in the order of the calls."""
        if self._json_file is not None:
            return self._find(path)
        self._images.append({"id": len(self._images) + 1, "file_name": path, "height": height, "width": width})
        return len(self._images)

    def results(self, image_id: int, instances: Instances) -> Iterator[dict]:
        """One entry for each detection, boxes as (x, y, width, height) in pixels."""
        boxes = instances.pred_boxes.tensor.tolist()
        for (x0, y0, x1, y1), score, index in zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist()):
            yield {
                "image_id": image_id,
                "category_id": self._category_ids[index],
                "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, 5),
            }

    def write_images(self, path: Path) -> None:
        """A COCO json with the images and categories, and no annotations: what ``COCO(path).loadRes`` starts from."""
        categories = [
            {"id": category_id, "name": name} for category_id, name in zip(self._category_ids, self._class_names)
        ]
        info = {"description": "images and categories that detections refer to"}
        write_json(path, {"info": info, "images": self._images, "categories": categories, "annotations": []})

    def _read(self, json_file: str | os.PathLike) -> None:
        coco = read_coco_json(json_file)
        try:
            images = [(PurePath(image["file_name"]).parts, image["id"]) for image in coco["images"]]
            categories = {category["name"]: category["id"] for category in coco["categories"]}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{json_file}: expected COCO's format, with 'id' and 'file_name' in 'images', 'id' and 'name' in "
                f"'categories', got {type(error).__name__}: {error}"
            ) from error
        for parts, image_id in images:
            if not parts:
                raise DataError(f"{json_file}: image {image_id!r}: expected the name of a file as 'file_name', got ''")
            self._ids_by_name.setdefault(parts[-1], []).append((parts, image_id))
        for name in self._class_names:
            if name not in categories:
                raise DataError(
                    f"{json_file}: 'categories' has no {name!r}, a class of the model.{did_you_mean(name, categories)} "
                    f"It has: {', '.join(map(str, categories))}"
                )
        self._category_ids = [categories[name] for name in self._class_names]

    def _find(self, path: str) -> int:
        parts = PurePath(os.path.abspath(path)).parts
        fitting = [entry for entry in self._ids_by_name.get(parts[-1], ()) if parts[-len(entry[0]) :] == entry[0]]
        if fitting:
            longest = max(len(names) for names, _ in fitting)  # "val/1.jpg" fits better than "1.jpg"
            ids = [image_id for names, image_id in fitting if len(names) == longest]
            if len(ids) > 1:
                raise DataError(f"{self._json_file}: {len(ids)} images have the same 'file_name', which fits {path}")
            return ids[0]
        hint = did_you_mean(parts[-1], self._ids_by_name)
        raise DataError(f"{self._json_file}: no image has a 'file_name' that fits {path}.{hint}")
