"""Writing a new json without the faults that can be mended for certain. The old one is never touched.

Mended are: sizes that are missing or wrong (those of the files, as shown); images that EXIF turns by 90 degrees while
the json has the stored size; ``iscrowd`` and ``area`` that evaluation needs; the annotation id 0; ``segmentation``
without a polygon. Left out are annotations of absent images and boxes that can be no object, which are never repaired.
All else stays as it is, and is listed.

Boxes of turned images belong to the stored or to the shown frame. Those that fit into one of the two only tell which.
If none does, they belong to the frame whose size the json has; without a size, to the shown one.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinox.data.boxes import DESCRIPTIONS, BoxFault, classify_boxes
from dinox.data.coco_json import outside_paths
from dinox.data.coco_problems import box_table, find_problems, image_sizes, is_id, is_size, is_whole
from dinox.data.errors import DataError
from dinox.data.images import ImageFile
from dinox.data.inspection.image_files import (
    OpenedImage,
    find_file_problems,
    find_missing,
    is_rotated,
    open_images,
    readable_entries,
)
from dinox.data.inspection.source import DatasetSource, load_source
from dinox.data.inspection.turning import turn_annotation
from dinox.data.problems import Place, Problem
from dinox.utils.whole_files import written_whole

_SAME_SHAPE = 0.01
"""Difference of two aspect ratios below which one image may be the other one, resized."""

_TOLERANCE = 1.0  # pixels that a box may stick out of its frame


@dataclass(frozen=True)
class Change:
    """One kind of change and what it was made to.

    where: "image" or "annotation", whose ids they are ("#3" for the fourth, without an id).
    """

    where: str
    text: str
    ids: tuple[Any, ...]


@dataclass(frozen=True)
class FixReport:
    """changed: what is different in the new json. left_out: annotations that are not in it. remaining: what is still
    wrong with it, worst first."""

    json_file: str
    changed: tuple[Change, ...]
    left_out: tuple[Change, ...]
    remaining: tuple[Problem, ...]


def fix_dataset(
    dataset: str | os.PathLike,
    new_json: str | os.PathLike,
    *,
    image_root: str | os.PathLike | None = None,
    allow_outside_image_root: bool = False,
    workers: int = 8,
    progress: bool = False,
) -> FixReport:
    """Write ``new_json`` from the json of a dataset; opens every image's header.

    Raises DataError if ``new_json`` exists, or the dataset or its image folder cannot be read.
    """
    new_json = os.fspath(new_json)
    check_target(new_json)
    source = load_source(dataset, image_root=image_root)
    if source.json_file is None:
        raise DataError(
            f"Dataset {source.name!r} is made by a function, not from a COCO json: there is nothing to fix."
        )
    if source.image_root is None or not os.path.isdir(source.image_root or "."):
        raise DataError(f"{source.title}: its images are needed and not found. Say where they are: --images FOLDER")
    images = readable_entries(source, allow_outside=allow_outside_image_root)
    opened = open_images(source, images, workers=workers, progress=progress)
    record = _Record()
    _fix_sizes(source.coco, opened, record)
    _fix_annotations(source.coco, record)
    with written_whole(new_json) as temporary:
        temporary.write_text(json.dumps(source.coco, ensure_ascii=False), encoding="utf-8")
    outside = [] if allow_outside_image_root else outside_paths(source.coco, source.image_root)
    remaining = [*outside, *_remaining(source, images, opened, record.resized)]
    return FixReport(new_json, record.entries(record.changed), record.entries(record.left_out), tuple(remaining))


def check_target(new_json: str) -> None:
    """Raises DataError for a file that exists, or a folder that does not."""
    if os.path.lexists(new_json):
        raise DataError(f"--fix {new_json}: it exists, and is not overwritten. Give the name of a new file.")
    folder = os.path.dirname(os.path.abspath(new_json))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise DataError(f"--fix {new_json}: expected a file in an existing folder that can be written, got {folder}")


class _Record:
    """Ids by (where, text): what is changed and left out. ``resized``: images whose sizes are left as they are."""

    def __init__(self) -> None:
        self.changed: dict[tuple[str, str], list] = defaultdict(list)
        self.left_out: dict[tuple[str, str], list] = defaultdict(list)
        self.resized: list[OpenedImage] = []

    def entries(self, kinds: Mapping[tuple[str, str], Sequence]) -> tuple[Change, ...]:
        return tuple(Change(where, text, tuple(ids)) for (where, text), ids in kinds.items())


# ---------------------------------------------------------------------------------------------------------------- sizes


def _fix_sizes(coco: dict, opened: Sequence[OpenedImage], record: _Record) -> None:
    boxes_of = _boxes_by_image(coco)
    rotated, frames = [], []
    for each in opened:
        image, file = each.image, each.file
        if file is None:
            continue
        size = (image.get("width"), image.get("height"))
        known = all(map(is_size, size))
        if known and size == (file.width, file.height):
            continue
        if file.stored_size != (file.width, file.height) and (not known or is_rotated(image, file)):
            rotated.append(each)
            frames.append(_frame_of(boxes_of.get(image.get("id"), []), file))
        elif known and _may_be_resized(size, file, boxes_of.get(image.get("id"), [])):
            record.resized.append(each)
        else:
            text = "wrong size replaced by that of the file" if known else "missing size taken from the file"
            record.changed["image", text].append(image.get("id"))
            image.update(width=file.width, height=file.height)
    _turn(coco, rotated, frames, record)


def _boxes_by_image(coco: dict) -> dict[Any, list[dict]]:
    """The annotations with 4 numbers, by image id."""
    kept, _, _ = box_table(coco["annotations"], image_sizes(coco))
    boxes: dict[Any, list[dict]] = defaultdict(list)
    for position in kept:
        annotation = coco["annotations"][position]
        boxes[annotation["image_id"]].append(annotation)
    return boxes


def _fits(annotations: Sequence[dict], size: tuple[float, float]) -> bool:
    """Do all boxes lie in a frame of (width, height)?"""
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=float).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(1)]
    return bool((boxes[:, :2] + boxes[:, 2:] <= np.array(size) + _TOLERANCE).all())


def _frame_of(annotations: Sequence[dict], file: ImageFile) -> str | None:
    """ "stored" or "shown" if the boxes fit into that one only."""
    stored, shown = _fits(annotations, file.stored_size), _fits(annotations, (file.width, file.height))
    if stored == shown:
        return None
    return "stored" if stored else "shown"


def _may_be_resized(size: tuple[int, int], file: ImageFile, annotations: Sequence[dict]) -> bool:
    """Is the json's size that of the same image at another scale, so that its boxes may be of that scale too?"""
    width, height = size
    same_shape = abs(width / height * file.height / file.width - 1) < _SAME_SHAPE
    return bool(same_shape and annotations and _fits(annotations, size))


def _turn(coco: dict, rotated: Sequence[OpenedImage], frames: Sequence[str | None], record: _Record) -> None:
    told = set(frames) - {None}
    usual = told.pop() if len(told) == 1 else None  # all that can tell agree
    turned = {}
    for each, frame in zip(rotated, frames):
        image, file = each.image, each.file
        assumed = frame or usual or ("stored" if is_rotated(image, file) else "shown")
        text = {
            "stored": "EXIF orientation: shown size written, boxes turned from the stored frame",
            "shown": "EXIF orientation: shown size written, boxes kept (they are of the shown frame)",
        }[assumed]
        record.changed["image", text].append(image.get("id"))
        if assumed == "stored":
            turned[image.get("id")] = file
        image.update(width=file.width, height=file.height)
    for annotations in (_boxes_by_image(coco) if turned else {}).items():
        file = turned.get(annotations[0])
        for annotation in annotations[1] if file else ():
            width, height = file.stored_size
            turn_annotation(annotation, width=width, height=height, orientation=file.orientation)


# ---------------------------------------------------------------------------------------------------------- annotations


def _fix_annotations(coco: dict, record: _Record) -> None:
    annotations = coco["annotations"]
    sizes = image_sizes(coco)
    kept, boxes, frames = box_table(annotations, sizes)
    drop = {
        position: f"box {DESCRIPTIONS[BoxFault(fault)]}"
        for position, fault in zip(kept, classify_boxes(boxes, frames).tolist())
        if fault != BoxFault.NONE
    }
    for position, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if is_id(image_id) and image_id not in sizes:
            drop[position] = "its image is not in the json"
    for position, text in sorted(drop.items()):
        record.left_out["annotation", text].append(annotations[position].get("id", f"#{position}"))
    coco["annotations"] = [each for position, each in enumerate(annotations) if position not in drop]
    _fill_fields(coco["annotations"], record)


def _fill_fields(annotations: list, record: _Record) -> None:
    ids = [a["id"] for a in annotations if isinstance(a, dict) and is_whole(a.get("id"))]
    for position, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            continue
        name = annotation.get("id", f"#{position}")
        if annotation.get("id") == 0 and ids.count(0) == 1:
            annotation["id"] = int(max(ids)) + 1
            record.changed["annotation", f"id 0 became {annotation['id']}"].append(0)
        if "iscrowd" not in annotation:
            annotation["iscrowd"] = 0
            record.changed["annotation", "iscrowd=0 written"].append(name)
        if annotation.get("area") is None and isinstance(annotation.get("bbox"), list):
            _fill_area(annotation, name, record)
        polygons = annotation.get("segmentation")
        if isinstance(polygons, list) and polygons and not any(map(_is_polygon, polygons)):
            del annotation["segmentation"]
            record.changed["annotation", "segmentation without a polygon removed, box kept"].append(name)


def _fill_area(annotation: dict, name: Any, record: _Record) -> None:
    try:
        _, _, width, height = map(float, annotation["bbox"])
    except (TypeError, ValueError):
        return
    annotation["area"] = width * height
    record.changed["annotation", "area of the box written"].append(name)


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _remaining(
    source: DatasetSource, images: Sequence[dict], opened: Sequence[OpenedImage], resized: Sequence[OpenedImage]
) -> list[Problem]:
    problems = [
        *find_problems(source.coco),
        *find_missing(source, images),
        *(problem for problem in find_file_problems(opened) if problem.kind != "wrong-size"),
        *_resized(resized),
    ]
    return [problem for problem in problems if problem.severity != "note" or problem.kind == "mirrored-image"]


def _resized(images: Sequence[OpenedImage]) -> list[Problem]:
    places = tuple(
        Place(
            each.image.get("id"),
            f"the json says {each.image['width']} x {each.image['height']} (width x height), which is the file's "
            f"{each.file.width} x {each.file.height} at another scale, and its boxes fit both",
            each.path,
        )
        for each in images
    )
    if not places:
        return []
    cure = "Look at one: if the boxes are of the smaller image, scale them; then write the file's size."
    return [Problem("resized-image", "error", "image", places[0].detail, places, cure)]
