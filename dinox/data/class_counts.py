"""In how many images each class is: what losses for data with many rare classes are drawn by."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from dinox.data.checks import check_registered
from dinox.data.coco_json import check_sections, read_json
from dinox.data.coco_problems import find_problems, is_whole
from dinox.data.errors import DataError
from dinox.data.problems import shown

_FAULTS = ("entry", "id", "category-id", "duplicate-category-id", "image-id", "unknown-category")
"""Of annotations and categories, what makes counting impossible (see ``dinox.data.coco_problems``)."""


class ClassImageCounts:
    """The numbers of images that each class is in, by class index; read when they are first asked for.

    source: a json file, or the name of a registered dataset that is numbered in the order of its categories' ids. The
    file is a list of objects with ``id`` and ``image_count`` (as CenterNet2's for LVIS), or a dataset's json whose
    ``categories`` have ``image_count`` (LVIS) or whose ``annotations`` are counted (COCO). A dataset may name them in
    its metadata, as ``class_image_count``, in the first of these formats.

    Calling it raises DataError if they are not there.
    """

    def __init__(self, *, source: str) -> None:
        self.source = source

    def __call__(self) -> tuple[int, ...]:
        return _counts(self.source)


def _counts(source: str) -> tuple[int, ...]:
    if source.endswith(".json") or os.path.isfile(source):
        return _of_file(source)
    check_registered(source)
    metadata = MetadataCatalog.get(source)
    if metadata.get("class_image_count") is None and metadata.get("json_file") is None:
        DatasetCatalog.get(source)  # some name their file when they are loaded
    if metadata.get("class_image_count") is not None:
        return _of_list(metadata.class_image_count, source)
    if metadata.get("json_file") is None:
        raise DataError(
            f"Dataset {source!r} has no json file to count its classes in: give a json file with the counts"
        )
    return _of_file(metadata.json_file)


def _of_file(file: str) -> tuple[int, ...]:
    """Large files are read once, until they change."""
    try:
        status = os.stat(file)
    except OSError:
        return _of_content(read_json(file), file)  # which says what is the matter
    return _of_unchanged_file(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _of_unchanged_file(file: str, modified: int, size: int) -> tuple[int, ...]:
    return _of_content(read_json(file), file)


def _of_content(content: Any, source: str) -> tuple[int, ...]:
    if isinstance(content, list):
        return _of_list(content, source)
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list):
        raise DataError(f"{source}: expected a list of classes, or an object with 'categories', to count classes in")
    if all(isinstance(each, dict) and "image_count" in each for each in categories):
        return _of_list(categories, source)
    check_sections(content, source, annotated=True)
    faults = [each for each in find_problems(content) if each.where != "image" and each.kind in _FAULTS]
    if faults:
        raise DataError(f"{source}: {faults[0]}")
    images: dict[Any, set] = {category["id"]: set() for category in categories}
    for annotation in content["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    return _of_list([{"id": key, "image_count": len(found)} for key, found in images.items()], source)


def _of_list(classes: Sequence[Any], source: str) -> tuple[int, ...]:
    for each in classes:
        count = each.get("image_count") if isinstance(each, dict) else None
        if not isinstance(count, int) or isinstance(count, bool) or count < 0 or not is_whole(each.get("id")):
            raise DataError(f"{source}: expected objects with 'id' and 'image_count', whole numbers, got {each!r}")
    ids = [each["id"] for each in classes]
    if not ids or len(set(ids)) < len(ids):
        raise DataError(f"{source}: expected at least one class, each with an id of its own, got the ids {shown(ids)}")
    return tuple(each["image_count"] for each in sorted(classes, key=lambda each: each["id"]))
