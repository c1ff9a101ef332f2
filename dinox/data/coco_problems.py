"""Everything that can be wrong with the content of a COCO json, found without touching an image.

Annotations are many, so that they are looked at as columns of numbers first. Only if something is no number where one
should be are they looked at one by one.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np

from dinox.data.boxes import EXPECTATIONS, KINDS, BoxFault, box_format_fault, classify_boxes
from dinox.data.problems import Place, Problem, Severity, listed, mismatch, shown

_LEFT_OUT_CURES = {
    BoxFault.NEGATIVE: "Write boxes as x, y, width, height, or remove the annotations.",
    BoxFault.OUTSIDE: "Boxes are absolute, in pixels of the image: fix or remove the annotations.",
}
_REMOVE = "Fix or remove the annotations."

_NUMBERS = {int, float}
_GREATEST_SIZE = 2**31


def find_problems(coco: dict) -> list[Problem]:
    """Every kind of mistake in the categories, images and annotations of a json whose sections are there."""
    return [
        *_collect("category", coco["categories"], _category_faults),
        *_duplicate_ids("category", coco["categories"]),
        *_collect("image", coco["images"], _image_faults),
        *_duplicate_ids("image", coco["images"]),
        *_annotation_problems(coco),
    ]


# -------------------------------------------------------------------------------------------------------------- entries


@dataclass(frozen=True)
class _Fault:
    """One mistake of one entry."""

    kind: str
    text: str
    cure: str
    severity: Severity = "error"


def _collect(
    where: str,
    entries: Sequence[Any],
    faults_of: Callable[[Any], Iterable[_Fault]],
    *,
    among: Iterable[int] | None = None,
    files: Mapping[Any, str] | None = None,
) -> list[Problem]:
    """Group the faults of all entries, or of those at some positions, by their kind, in the order of appearance.

    ``files``: of annotations, the file names of the images by id.
    """
    found: dict[str, tuple[_Fault, list[Place]]] = {}
    for position in range(len(entries)) if among is None else among:
        entry = entries[position]
        for fault in faults_of(entry):
            _, places = found.setdefault(fault.kind, (fault, []))
            places.append(_place(entry, position, fault.text, files))
    return [
        Problem(kind=kind, severity=fault.severity, where=where, text=fault.text, places=tuple(places), cure=fault.cure)
        for kind, (fault, places) in found.items()
    ]


def _name(entry: Any, position: int) -> Any:
    return entry["id"] if isinstance(entry, dict) and "id" in entry else f"#{position}"


def _place(entry: Any, position: int, detail: str, files: Mapping[Any, str] | None = None) -> Place:
    if not isinstance(entry, dict):
        return Place(f"#{position}", detail)
    image_id = entry.get("image_id")
    file = entry.get("file_name", "") if files is None else files.get(image_id, "") if is_id(image_id) else ""
    return Place(_name(entry, position), detail, str(file))


def _duplicate_ids(where: str, entries: Iterable[Any]) -> list[Problem]:
    counts = Counter(entry["id"] for entry in entries if isinstance(entry, dict) and is_id(entry.get("id")))
    if len(counts) == counts.total():
        return []
    texts = {
        i: mismatch("id", f"an id of its own for each {where}", f"{count} entries with the id {i}")
        for i, count in counts.items()
        if count > 1
    }
    places = tuple(Place(i, text) for i, text in texts.items())
    kind = f"duplicate-{where}-id"
    return [Problem(kind, "error", where, places[0].detail, places, "Renumber or remove the others.")]


def _entry_faults(entry: Any) -> Iterator[_Fault]:
    if not isinstance(entry, dict):
        yield _Fault("entry", f"expected an object, got {shown(entry)}", "Remove it.")
    elif not is_id(entry.get("id")):
        yield _Fault("id", mismatch("id", "a number", field(entry, "id")), "Give it one.")


def _category_faults(category: Any) -> Iterator[_Fault]:
    yield from _entry_faults(category)
    if isinstance(category, dict) and isinstance(category.get("id"), str):
        cure = "Number the categories: the order of their ids is that of the classes."
        yield _Fault("category-id", mismatch("id", "a number", field(category, "id")), cure)
    if isinstance(category, dict) and not isinstance(category.get("name"), str):
        text = mismatch("name", "the name of the class", field(category, "name"))
        yield _Fault("category-name", text, "Write it into the category.")


def _image_faults(image: Any) -> Iterator[_Fault]:
    yield from _entry_faults(image)
    if not isinstance(image, dict):
        return
    if not isinstance(image.get("file_name"), str):
        text = mismatch("file_name", "a path relative to the image folder", field(image, "file_name"))
        yield _Fault("file-name", text, "Write it into the image.")
    for side in ("height", "width"):
        if not is_size(image.get(side)):
            cure = "Write the size of the image file into the json (dinox check-data --fix does)."
            yield _Fault(side, mismatch(side, "a number of pixels", field(image, side)), cure)


# ---------------------------------------------------------------------------------------------------------- annotations


def _annotation_problems(coco: dict) -> list[Problem]:
    annotations = coco["annotations"]
    if not annotations:
        return []
    categories = {c["id"] for c in coco["categories"] if isinstance(c, dict) and is_id(c.get("id"))}
    sizes = image_sizes(coco)
    files = {i["id"]: i.get("file_name", "") for i in coco["images"] if isinstance(i, dict) and is_id(i.get("id"))}
    well_formed = _are_well_formed(annotations, categories)
    return [
        *([] if well_formed else _malformed(annotations, categories, files)),
        *_duplicate_ids("annotation", annotations),
        *_absent_images(annotations, sizes, well_formed=well_formed),
        *_left_out_boxes(annotations, sizes, files, well_formed=well_formed),
        *_collect("annotation", annotations, _polygon_faults, among=_unusual_polygons(annotations), files=files),
        *_unready_for_evaluation(annotations, files),
    ]


def _are_well_formed(annotations: list, categories: set[Hashable]) -> bool:
    """A fast yes for what nearly all files are: ``_malformed`` would find nothing. A no means: look at each."""
    try:
        ids = [annotation["id"] for annotation in annotations]
        boxes = [annotation["bbox"] for annotation in annotations]
        images = {type(annotation["image_id"]) for annotation in annotations}
        used = {annotation["category_id"] for annotation in annotations}
        ignored = any(annotation.get("ignore") for annotation in annotations)
        numbers = set(map(type, chain.from_iterable(boxes)))
        fours = set(map(len, boxes)) == {4}
        if numbers <= _NUMBERS and int in numbers:
            np.fromiter(chain.from_iterable(boxes), dtype=np.float64)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False
    return (
        set(map(type, ids)) == {int}
        and images <= {int, str}
        and set(map(type, used)) == {int}
        and used <= categories
        and not ignored
        and set(map(type, boxes)) == {list}
        and fours
        and numbers <= _NUMBERS
    )


def _malformed(annotations: list, categories: set[Hashable], files: Mapping[Any, str]) -> list[Problem]:
    known = listed(sorted(categories, key=str), total=len(categories))

    def faults(annotation: Any) -> Iterator[_Fault]:
        yield from _entry_faults(annotation)
        if not isinstance(annotation, dict):
            return
        if not is_id(annotation.get("image_id")):
            text = mismatch("image_id", "the id of an image", field(annotation, "image_id"))
            yield _Fault("image-id", text, "Write it into the annotation.")
        category = annotation.get("category_id")
        if not is_id(category) or category not in categories:
            text = mismatch("category_id", f"the id of a category ({known})", field(annotation, "category_id"))
            yield _Fault("unknown-category", text, "Add the category, or fix or remove the annotations.")
        if annotation.get("ignore"):
            text = mismatch("ignore", "0", shown(annotation["ignore"]))
            yield _Fault("ignore-flag", text, "detectron2 knows 'iscrowd' only: use it, or remove them.")
        fault = box_format_fault(annotation.get("bbox"))
        if fault:
            expected, got, cure = fault
            yield _Fault("no-box", mismatch("bbox", expected, got), cure)

    return _collect("annotation", annotations, faults, files=files)


def _absent_images(annotations: list, sizes: Mapping[Any, Any], *, well_formed: bool) -> list[Problem]:
    if well_formed and {annotation["image_id"] for annotation in annotations} <= sizes.keys():
        return []
    places = [
        _place(a, position, mismatch("image_id", "the id of an image of this file", shown(a["image_id"])))
        for position, a in enumerate(annotations)
        if isinstance(a, dict) and is_id(a.get("image_id")) and a["image_id"] not in sizes
    ]
    if not places:
        return []
    cure = "Add the images, or remove the annotations."
    return [Problem("absent-image", "left out", "annotation", places[0].detail, tuple(places), cure)]


def box_table(
    annotations: list, sizes: Mapping[Any, tuple[float, float]], *, well_formed: bool = False
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The annotations of known images that have a box of 4 numbers.

    ``sizes``: (height, width) of the images by id. ``well_formed``: all have a box and an image's id. Returns their
    positions; boxes (N, 4), x, y, width, height; and the (N, 2) height and width of their images.
    """
    kept = [
        position
        for position, annotation in enumerate(annotations)
        if (well_formed or _has_box(annotation)) and annotation["image_id"] in sizes
    ]
    try:
        boxes = _table((annotations[position]["bbox"] for position in kept), len(kept), 4)
    except OverflowError:  # an integer beyond the range of floats is no number of pixels
        kept = [position for position in kept if box_format_fault(annotations[position]["bbox"]) is None]
        boxes = _table((annotations[position]["bbox"] for position in kept), len(kept), 4)
    frames = (sizes[annotations[position]["image_id"]] for position in kept)
    return kept, boxes, _table(frames, len(kept), 2)


def _table(rows: Iterable[Iterable[float]], height: int, width: int) -> np.ndarray:
    """(height, width) float64; several times as fast as np.array."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64, count=height * width).reshape(height, width)


def _has_box(annotation: Any) -> bool:
    if not isinstance(annotation, dict) or not is_id(annotation.get("image_id")):
        return False
    box = annotation.get("bbox")
    usual = type(box) is list and len(box) == 4 and set(map(type, box)) <= _NUMBERS
    return usual or box_format_fault(box) is None


def _left_out_boxes(
    annotations: list, sizes: Mapping[Any, tuple[float, float]], files: Mapping[Any, str], *, well_formed: bool
) -> list[Problem]:
    kept, boxes, frames = box_table(annotations, sizes, well_formed=well_formed)
    faults = classify_boxes(boxes, frames)
    problems = []
    for fault, kind in KINDS.items():
        positions = [kept[row] for row in np.flatnonzero(faults == fault)]
        if not positions:
            continue
        places = [
            _place(annotations[position], position, _box_text(annotations[position], fault, sizes), files)
            for position in positions
        ]
        cure = _LEFT_OUT_CURES.get(fault, _REMOVE)
        problems.append(Problem(kind, "left out", "annotation", places[0].detail, tuple(places), cure))
    return problems


def _box_text(annotation: dict, fault: BoxFault, sizes: Mapping[Any, tuple[float, float]]) -> str:
    got = shown(annotation["bbox"])
    if fault is BoxFault.OUTSIDE:
        height, width = sizes[annotation["image_id"]]
        got += f" in an image of {width:.0f} x {height:.0f}"
    return mismatch("bbox", EXPECTATIONS[fault], got)


def _unusual_polygons(annotations: list) -> list[int]:
    """Positions of all annotations but those with one good polygon, with masks, or without either."""
    unusual = []
    for position, annotation in enumerate(annotations):
        polygons = annotation.get("segmentation") if type(annotation) is dict else None
        if type(polygons) is list and not (
            len(polygons) == 1 and type(polygons[0]) is list and len(polygons[0]) >= 6 and len(polygons[0]) % 2 == 0
        ):
            unusual.append(position)
    return unusual


def _polygon_faults(annotation: Any) -> Iterator[_Fault]:
    """detectron2 leaves out annotations without a valid polygon, the box with it."""
    polygons = annotation.get("segmentation") if isinstance(annotation, dict) else None
    if not isinstance(polygons, list) or not polygons:
        return
    if not all(isinstance(polygon, list) for polygon in polygons):
        text = mismatch("segmentation", "a list of polygons, each [x1, y1, x2, y2, ...]", shown(polygons))
        yield _Fault("no-polygon", text, "Correct it, or remove 'segmentation': detection needs the box only.")
    elif not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons):
        text = mismatch("segmentation", "a polygon of at least 3 points", shown(polygons))
        cure = "Correct it, or remove 'segmentation': detection needs the box only."
        yield _Fault("empty-polygon", text, cure, "left out")


def _unready_for_evaluation(annotations: list, files: Mapping[Any, str]) -> list[Problem]:
    """pycocotools stops without these, but only when all images have been through the model."""
    problems = []
    for name, meaning in (("iscrowd", "0 for an object, 1 for a crowd"), ("area", "the object's area in pixels")):
        if _are_all_finite(annotations, name):
            continue
        places = tuple(
            _place(a, position, mismatch(name, meaning, field(a, name)), files)
            for position, a in enumerate(annotations)
            if isinstance(a, dict) and not is_finite(a.get(name))
        )
        if places:
            cure = "Evaluation needs it (dinox check-data --fix writes it)."
            problems.append(Problem(f"no-{name}", "evaluation", "annotation", places[0].detail, places, cure))
    return problems


def _are_all_finite(annotations: list, name: str) -> bool:
    """A fast yes for what nearly all files are."""
    try:
        values = [annotation[name] for annotation in annotations]
    except (KeyError, TypeError):
        return False
    try:
        return set(map(type, values)) <= _NUMBERS and bool(np.isfinite(np.array(values, dtype=np.float64)).all())
    except OverflowError:  # an integer beyond the range of floats
        return False


# --------------------------------------------------------------------------------------------------------------- values


def image_sizes(coco: dict) -> dict[Any, tuple[float, float]]:
    """(height, width) of the images by id; NaN for what is no size."""
    return {
        image["id"]: tuple(float(image[side]) if is_size(image.get(side)) else math.nan for side in ("height", "width"))
        for image in coco["images"]
        if isinstance(image, dict) and is_id(image.get("id"))
    }


def is_size(value: Any) -> bool:
    return is_whole(value) and 1 <= value < _GREATEST_SIZE


def is_whole(value: Any) -> bool:
    """Is it an integer, or a float that is one, as tables that became json often have?"""
    if type(value) is int:
        return True
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)


def is_id(value: Any) -> bool:
    return isinstance(value, str) or is_whole(value)


def is_finite(value: Any) -> bool:
    """Is it a number that a float can hold?"""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False


def field(entry: dict, name: str) -> str:
    """The value of a field in a message."""
    return shown(entry[name]) if name in entry else "nothing"
