"""Checks of COCO json files, before detectron2 and pycocotools read them.

These two stop at bad files with errors that name neither file nor annotation, or do not stop: a box of negative width
becomes another box, a repeated image id hides an image.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from dinox.data.errors import DataError

_LISTED = 10
"""How many ids a message lists; the total follows."""

_FIRST_IMAGES = 8
"""How many image files are looked for. If all are missing, the image folder is the wrong one."""


@dataclass(frozen=True)
class Problem:
    """One kind of mistake in a json, with everything that has it.

    ``where``: "annotation" or "image" or "category", whose ids (or positions as "#3", without an id) ``ids`` are.
    """

    field: str
    expected: str
    got: str
    where: str
    ids: tuple[Any, ...]
    cure: str

    def __str__(self) -> str:
        listed = ", ".join(str(i) for i in self.ids[:_LISTED])
        more = f", ... ({len(self.ids)} in all)" if len(self.ids) > _LISTED else ""
        plural = "s" if len(self.ids) > 1 else ""
        return (
            f"'{self.field}': expected {self.expected}, got {self.got} "
            f"(first of {len(self.ids)} {self.where}{plural}: id{plural} {listed}{more}). {self.cure}"
        )


def check_coco_json(
    json_file: str | os.PathLike, image_root: str | os.PathLike | None = None, *, annotated: bool = True
) -> list[str]:
    """Check a COCO detection json and the folder of its images; return the class names in the order of their ids.

    Opens no image. Of several kinds of mistakes the first is explained and the others are counted.

    Args:
        json_file: categories, images and annotations; boxes are absolute (x, y, width, height).
        image_root: the folder that the images' ``file_name`` is relative to; None leaves it unchecked.
        annotated: False allows a file without ``annotations``, as those of test sets are.

    Raises DataError naming the file and the field or ids.
    """
    coco = read_coco_json(json_file)
    _check_sections(coco, json_file, annotated=annotated)
    problems = find_problems(coco)
    if problems:
        others = {1: "", 2: " There is 1 other kind of mistake."}
        more = others.get(len(problems), f" There are {len(problems) - 1} other kinds of mistakes.")
        raise DataError(f"{json_file}: {problems[0]}{more}")
    if image_root is not None:
        _check_image_root(coco, json_file, image_root)
    return [category["name"] for category in sorted(coco["categories"], key=lambda category: category["id"])]


def read_coco_json(json_file: str | os.PathLike) -> dict:
    """The content of a json file. Raises DataError naming file, byte offset or key."""
    try:
        with open(json_file, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise DataError(f"Annotation file {json_file} not found. {dataset_root_hint()}") from error
    except OSError as error:
        raise DataError(f"Annotation file {json_file} cannot be read: {error.strerror}.") from error
    try:
        coco = json.loads(content)
    except json.JSONDecodeError as error:
        offset = len(error.doc[: error.pos].encode())
        raise DataError(
            f"{json_file}: not valid json at byte {offset} of {len(content)} "
            f"(line {error.lineno}, column {error.colno}): {error.msg}. Write or download the file again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{json_file}: not valid json: byte {error.start} of {len(content)} is no text.") from error
    if not isinstance(coco, dict):
        raise DataError(f"{json_file}: expected an object with images, annotations and categories, got {_shown(coco)}.")
    return coco


def dataset_root_hint() -> str:
    """Where detectron2 looks for datasets, as a sentence."""
    root = os.environ.get("DETECTRON2_DATASETS")
    now = f"is {root!r}" if root else "is not set, which means ./datasets"
    return (
        f"detectron2 looks for its own datasets below the folder in the environment variable DETECTRON2_DATASETS, "
        f"which {now} (seen from {os.getcwd()}). Set it to the folder of your datasets, or register the right path."
    )


def find_problems(coco: dict) -> list[Problem]:
    """Every kind of mistake in the categories, images and annotations of a json whose sections are there."""
    return [
        *_collect("category", coco["categories"], _category_faults),
        *_duplicates("category", coco["categories"]),
        *_collect("image", coco["images"], _image_faults),
        *_duplicates("image", coco["images"]),
        *_annotation_problems(coco),
    ]


# ------------------------------------------------------------------------------------------------------------- sections


def _check_sections(coco: dict, json_file: str | os.PathLike, *, annotated: bool) -> None:
    for key, empty_allowed in (("images", False), ("categories", False), ("annotations", True)):
        if key == "annotations" and key not in coco and not annotated:
            coco[key] = []
        if key not in coco:
            found = ", ".join(sorted(map(str, coco))) or "nothing"
            raise DataError(
                f"{json_file}: no key '{key}' (found: {found}). Expected COCO's format, with a list '{key}'."
            )
        if not isinstance(coco[key], list):
            raise DataError(f"{json_file}: '{key}': expected a list, got {_shown(coco[key])}.")
        if not coco[key] and not empty_allowed:
            raise DataError(f"{json_file}: '{key}' is empty: expected at least one entry.")


def _check_image_root(coco: dict, json_file: str | os.PathLike, image_root: str | os.PathLike) -> None:
    if not os.path.isdir(image_root):
        raise DataError(f"Image folder {image_root} of {json_file} not found. {dataset_root_hint()}")
    files = [os.path.join(image_root, image["file_name"]) for image in coco["images"][:_FIRST_IMAGES]]
    if not any(os.path.isfile(file) for file in files):
        raise DataError(
            f"{json_file}: no image found: none of the first {len(files)} files is there, for example {files[0]}. "
            f"The 'file_name' of an image has to be relative to the image folder {image_root}."
        )


# -------------------------------------------------------------------------------------------------------------- entries

Fault = tuple[str, str, str, str]
"""field, expected, got, cure"""


def _collect(where: str, entries: Iterable[Any], faults_of: Callable[[Any], Iterable[Fault]]) -> list[Problem]:
    """Group the faults of all entries by what was expected, in the order of their first appearance."""
    found: dict[tuple[str, str], tuple[Fault, list]] = {}
    for position, entry in enumerate(entries):
        for fault in faults_of(entry):
            _, ids = found.setdefault(fault[:2], (fault, []))
            ids.append(_name(entry, position))
    return [
        Problem(field=field, expected=expected, got=got, where=where, ids=tuple(ids), cure=cure)
        for (field, expected, got, cure), ids in found.values()
    ]


def _name(entry: Any, position: int) -> Any:
    return entry["id"] if isinstance(entry, dict) and "id" in entry else f"#{position}"


def _duplicates(where: str, entries: Iterable[Any]) -> list[Problem]:
    counts = Counter(entry["id"] for entry in entries if isinstance(entry, dict) and _is_id(entry.get("id")))
    repeated = tuple(i for i, count in counts.items() if count > 1)
    if not repeated:
        return []
    got = f"{counts[repeated[0]]} entries with the id {repeated[0]}"
    return [Problem("id", f"an id of its own for each {where}", got, where, repeated, "Renumber or remove the others.")]


def _entry_faults(entry: Any) -> Iterator[Fault]:
    if not isinstance(entry, dict):
        yield ("", "an object", _shown(entry), "Remove it.")
    elif not _is_id(entry.get("id")):
        yield ("id", "a number", _field(entry, "id"), "Give it one.")


def _category_faults(category: Any) -> Iterator[Fault]:
    yield from _entry_faults(category)
    if isinstance(category, dict) and isinstance(category.get("id"), str):
        yield (
            "id",
            "a number",
            _field(category, "id"),
            "Number the categories: the order of their ids is that of the classes.",
        )
    if isinstance(category, dict) and not isinstance(category.get("name"), str):
        yield ("name", "the name of the class", _field(category, "name"), "Write it into the category.")


def _image_faults(image: Any) -> Iterator[Fault]:
    yield from _entry_faults(image)
    if not isinstance(image, dict):
        return
    if not isinstance(image.get("file_name"), str):
        yield (
            "file_name",
            "a path relative to the image folder",
            _field(image, "file_name"),
            "Write it into the image.",
        )
    for side in ("height", "width"):
        if not is_whole(image.get(side)) or image[side] < 1:
            yield (side, "a number of pixels", _field(image, side), "Write the size of the image file into the json.")


def _annotation_problems(coco: dict) -> list[Problem]:
    categories = {c["id"] for c in coco["categories"] if isinstance(c, dict) and _is_id(c.get("id"))}
    listed = ", ".join(str(i) for i in sorted(categories, key=str)[:_LISTED]) + (
        ", ..." if len(categories) > _LISTED else ""
    )

    def faults(annotation: Any) -> Iterator[Fault]:
        yield from _entry_faults(annotation)
        if not isinstance(annotation, dict):
            return
        if "image_id" not in annotation:
            yield ("image_id", "the id of an image", "nothing", "Write it into the annotation.")
        category = annotation.get("category_id")
        if not _is_id(category) or category not in categories:
            cure = "Add the category, or fix or remove the annotations."
            yield ("category_id", f"the id of a category ({listed})", _field(annotation, "category_id"), cure)
        if annotation.get("ignore"):
            yield (
                "ignore",
                "0",
                _shown(annotation["ignore"]),
                "detectron2 knows 'iscrowd' only: use it, or remove them.",
            )
        fault = box_fault(annotation.get("bbox"))
        if fault:
            yield ("bbox", *fault)

    return [*_collect("annotation", coco["annotations"], faults), *_duplicates("annotation", coco["annotations"])]


# --------------------------------------------------------------------------------------------------------------- values


def is_whole(value: Any) -> bool:
    """Is it an integer, or a float that is one, as tables that became json often have?"""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or is_whole(value)


def box_fault(box: Any, *, corners: bool = False) -> tuple[str, str, str] | None:
    """What is wrong with an absolute box: (expected, got, cure), or None.

    Boxes without area and outside of the image are not a fault here: training leaves them out.

    Args:
        box: (x, y, width, height), or (x1, y1, x2, y2) if ``corners``; any sequence.
    """
    order = "x1, y1, x2, y2" if corners else "x, y, width, height"
    # A numpy array has a length as well; a text has one too.
    is_sequence = not isinstance(box, str) and hasattr(box, "__len__")
    if not is_sequence or len(box) != 4 or not all(_is_finite(number) for number in box):
        return (f"4 finite numbers ({order})", _shown(box), "Fix or remove the annotations.")
    x, y, right, bottom = box
    if right < (x if corners else 0) or bottom < (y if corners else 0):
        cure = f"Write boxes as {order}, or remove the annotations."
        return ("a width and a height that are not negative", _shown(box), cure)
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _field(entry: dict, field: str) -> str:
    return _shown(entry[field]) if field in entry else "nothing"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return "null" if value is None else repr(value)
