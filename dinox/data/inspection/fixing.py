"""Writing a new json without the faults that can be mended for certain. The old one is never touched.

Mended are: sizes that are missing or wrong (those of the files, as shown); images that EXIF turns by 90 degrees while
the json has the stored size; ``iscrowd`` and ``area`` that evaluation needs; the annotation id 0; ``segmentation``
without a polygon; NaN and infinity, which json has not, and which become null. Left out are annotations of absent
images and boxes that can be no object, which are never repaired. All else stays as it is, and is listed.

Boxes of turned images belong to the stored or to the shown frame. Those that fit into one of the two only tell which.
If none does, they are assumed to be of the frame whose size the json has; without a size, of the shown one. That is
said, and these images are listed as what somebody has to look at.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinox.data.boxes import DESCRIPTIONS, BoxFault, classify_boxes
from dinox.data.coco_json import outside_paths
from dinox.data.coco_problems import box_table, find_problems, image_sizes, is_finite, is_id, is_size, is_whole
from dinox.data.errors import DataError
from dinox.data.images import ImageFile
from dinox.data.inspection.image_files import (
    OpenedImage,
    find_file_problems,
    find_missing,
    open_images,
    readable_entries,
)
from dinox.data.inspection.report import FileOptions
from dinox.data.inspection.source import DatasetSource, load_source
from dinox.data.inspection.turning import turn_annotation
from dinox.data.problems import Place, Problem
from dinox.utils.whole_files import written_whole

_SAME_SHAPE = 0.01
"""Difference of two aspect ratios below which one image may be the other one, resized."""

_TURNED = {
    ("stored", "told"): ", boxes turned from the stored frame",
    ("stored", "assumed"): ", boxes turned; they are assumed to be of the stored frame: look at one",
    ("shown", "told"): ", boxes kept (they are of the shown frame)",
    ("shown", "assumed"): ", boxes kept; they are assumed to be of the shown frame: look at one",
    ("stored", "none"): "",
    ("shown", "none"): "",
}

_NOTES_TO_LOOK_AT = ("mirrored-image", "assumed-frame", "unturned-segmentation", "unturned-keypoints")

_HEADERS = FileOptions(open_images="headers")

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
    files: FileOptions = _HEADERS,
    opened: Sequence[OpenedImage] = (),
) -> FixReport:
    """Write ``new_json`` from the json of a dataset; opens every image, its header at least.

    Args:
        dataset, image_root: as in ``inspect_dataset``.
        files: what may be done with the image files.
        opened: the images if ``inspect_dataset`` has opened them already, with the same ``files``.

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
    images = readable_entries(source, allow_outside=files.allow_outside_image_root)
    opened = _opened_of(source, images, opened, files)
    record = _Record()
    _fix_sizes(source.coco, opened, record)
    _fix_annotations(source.coco, record)
    text = _as_text(source.coco, record)
    with written_whole(new_json) as temporary:
        temporary.write_text(text, encoding="utf-8")
    outside = [] if files.allow_outside_image_root else outside_paths(source.coco, source.image_root)
    remaining = [*outside, *_remaining(source, images, opened, record)]
    return FixReport(new_json, record.entries(record.changed), record.entries(record.left_out), tuple(remaining))


def _opened_of(
    source: DatasetSource, images: Sequence[dict], opened: Sequence[OpenedImage], files: FileOptions
) -> list[OpenedImage]:
    """What was opened before, for the entries of this reading of the json; opened now if there is none."""
    if [each.path for each in opened] == [source.path(image["file_name"]) for image in images]:
        return [replace(each, image=image) for each, image in zip(opened, images)]
    return open_images(
        source,
        images,
        decode=files.open_images == "pixels",
        exif=files.exif,
        max_pixels=files.max_pixels,
        workers=files.workers,
        progress=files.progress,
    )


def check_target(new_json: str) -> None:
    """Raises DataError for a file that exists, or a folder that does not."""
    if os.path.lexists(new_json):
        raise DataError(f"--fix {new_json}: it exists, and is not overwritten. Give the name of a new file.")
    folder = os.path.dirname(os.path.abspath(new_json))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise DataError(f"--fix {new_json}: expected a file in an existing folder that can be written, got {folder}")


class _Record:
    """Ids by (where, text): what is changed and left out.

    resized: images whose sizes are left as they are. assumed: turned images, with the frame that their boxes are
    assumed to be of. unturned: fields that could not be turned, by name.
    """

    def __init__(self) -> None:
        self.changed: dict[tuple[str, str], list] = defaultdict(list)
        self.left_out: dict[tuple[str, str], list] = defaultdict(list)
        self.resized: list[OpenedImage] = []
        self.assumed: list[tuple[OpenedImage, str]] = []
        self.unturned: dict[str, list[Place]] = defaultdict(list)

    def entries(self, kinds: Mapping[tuple[str, str], Sequence]) -> tuple[Change, ...]:
        return tuple(Change(where, text, tuple(ids)) for (where, text), ids in kinds.items())


# ---------------------------------------------------------------------------------------------------------------- sizes


def _fix_sizes(coco: dict, opened: Sequence[OpenedImage], record: _Record) -> None:
    boxes_of = _boxes_by_image(coco)
    rotated, frames = [], []
    for each in opened:
        image = each.image
        if each.file is None or (each.is_rotated and each.exif == "ignore"):
            continue  # the latter are of the other frame, and it is for the config to read that one
        size = (image.get("width"), image.get("height"))
        known = all(map(is_size, size))
        if known and size == each.size:
            continue
        boxes = boxes_of.get(image.get("id"), [])
        if each.exif == "apply" and each.is_turned and (not known or each.is_rotated):
            rotated.append((each, bool(boxes)))
            frames.append(_frame_of(boxes, each.file))
        elif known and _may_be_resized(size, each.size, boxes):
            record.resized.append(each)
        else:
            text = "wrong size replaced by that of the file" if known else "missing size taken from the file"
            record.changed["image", text].append(image.get("id"))
            image.update(width=each.size[0], height=each.size[1])
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


def _may_be_resized(size: tuple[int, int], true_size: tuple[int, int], annotations: Sequence[dict]) -> bool:
    """Is the json's size that of the same image at another scale, so that its boxes may be of that scale too?"""
    width, height = size
    same_shape = abs(width / height * true_size[1] / true_size[0] - 1) < _SAME_SHAPE
    return bool(same_shape and annotations and _fits(annotations, size))


def _turn(
    coco: dict, rotated: Sequence[tuple[OpenedImage, bool]], frames: Sequence[str | None], record: _Record
) -> None:
    """``rotated``: images, and whether they have boxes."""
    told = set(frames) - {None}
    usual = told.pop() if len(told) == 1 else None  # all that can tell agree
    turned = {}
    for (each, has_boxes), frame in zip(rotated, frames):
        image, file = each.image, each.file
        told_frame = frame or usual
        written_frame = told_frame or ("stored" if each.is_rotated else "shown")
        text = _TURNED[written_frame, "none" if not has_boxes else "told" if told_frame else "assumed"]
        record.changed["image", f"EXIF orientation: shown size written{text}"].append(image.get("id"))
        if has_boxes and told_frame is None:
            record.assumed.append((each, written_frame))
        if written_frame == "stored":
            turned[image.get("id")] = file
        image.update(width=file.width, height=file.height)
    for annotations in (_boxes_by_image(coco) if turned else {}).items():
        file = turned.get(annotations[0])
        for annotation in annotations[1] if file else ():
            width, height = file.stored_size
            faults = turn_annotation(annotation, width=width, height=height, orientation=file.orientation)
            for name, reason in faults.items():
                record.unturned[name].append(Place(annotation.get("id"), f"'{name}' cannot be turned: {reason}"))


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
    is_one_zero, free = ids.count(0) == 1, int(max(ids, default=0)) + 1
    for position, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            continue
        name = annotation.get("id", f"#{position}")
        if annotation.get("id") == 0 and is_one_zero:
            annotation["id"] = free
            record.changed["annotation", f"id 0 became {annotation['id']}"].append(0)
        if annotation.get("iscrowd") is None or _is_nan_or_infinite(annotation["iscrowd"]):
            annotation["iscrowd"] = 0
            record.changed["annotation", "iscrowd=0 written"].append(name)
        if not is_finite(annotation.get("area")) and isinstance(annotation.get("bbox"), list):
            _fill_area(annotation, name, record)
        polygons = annotation.get("segmentation")
        if isinstance(polygons, list) and polygons and not any(map(_is_polygon, polygons)):
            del annotation["segmentation"]
            record.changed["annotation", "segmentation without a polygon removed, box kept"].append(name)


def _fill_area(annotation: dict, name: Any, record: _Record) -> None:
    try:
        _, _, width, height = map(float, annotation["bbox"])
    except (TypeError, ValueError, OverflowError):
        return
    if not math.isfinite(width * height):
        return
    annotation["area"] = width * height
    record.changed["annotation", "area of the box written"].append(name)


def _is_nan_or_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _as_text(coco: dict, record: _Record) -> str:
    """As strict json, which has no NaN and no infinity: they become null."""
    try:
        return json.dumps(coco, ensure_ascii=False, allow_nan=False)
    except ValueError:
        pass
    for section, content in coco.items():
        is_list = section in ("images", "annotations", "categories")
        for position, entry in enumerate(content if is_list else ()):
            for name in list(entry) if isinstance(entry, dict) else ():
                entry[name], had_any = _without_nan(entry[name])
                if had_any:
                    where = {"categories": "category"}.get(section, section.removesuffix("s"))
                    text = f"null written for NaN or infinity in '{name}'"
                    record.changed[where, text].append(entry.get("id", f"#{position}"))
    plain, had_any = _without_nan(coco)
    if had_any:
        record.changed["dataset", "null written for NaN or infinity outside of images and annotations"].append("all")
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> tuple[Any, bool]:
    """A copy with null for each NaN and infinity, and whether there were any."""
    if isinstance(value, dict):
        pairs = {name: _without_nan(each) for name, each in value.items()}
        return {name: each for name, (each, _) in pairs.items()}, any(had for _, had in pairs.values())
    if isinstance(value, list):
        items = [_without_nan(each) for each in value]
        return [each for each, _ in items], any(had for _, had in items)
    return (None, True) if _is_nan_or_infinite(value) else (value, False)


def _remaining(
    source: DatasetSource, images: Sequence[dict], opened: Sequence[OpenedImage], record: _Record
) -> list[Problem]:
    problems = [
        *find_problems(source.coco),
        *find_missing(source, images),
        *(problem for problem in find_file_problems(opened) if problem.kind != "wrong-size"),
        *_resized(record.resized),
        *_assumed(record.assumed),
        *_unturned(record.unturned),
    ]
    return [problem for problem in problems if problem.severity != "note" or problem.kind in _NOTES_TO_LOOK_AT]


def _assumed(images: Sequence[tuple[OpenedImage, str]]) -> list[Problem]:
    places = tuple(
        Place(each.image.get("id"), f"boxes assumed to be of the {frame} frame, and they fit both", each.path)
        for each, frame in images
    )
    if not places:
        return []
    cure = (
        "Look at one with its new boxes. If they are wrong, the old ones were of the other frame, and all boxes of "
        "these images have to be as they were (if they were turned), or turned (if they were kept)."
    )
    return [Problem("assumed-frame", "note", "image", places[0].detail, places, cure)]


def _unturned(places_by_field: Mapping[str, Sequence[Place]]) -> list[Problem]:
    cure = "It is malformed, and stays as it was while its box is turned: correct or remove it."
    return [
        Problem(f"unturned-{name}", "note", "annotation", places[0].detail, tuple(places), cure)
        for name, places in places_by_field.items()
    ]


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
