"""Reading and checking COCO json files, before detectron2 and pycocotools read them.

These two stop at bad files with errors that name neither file nor annotation, or do not stop: a box of negative width
becomes another box, a repeated image id hides an image.
"""

import json
import math
import os
from typing import Any

from dinox.data.boxes import KINDS
from dinox.data.coco_problems import find_problems
from dinox.data.errors import DataError
from dinox.data.image_paths import ALLOW_KEY, leaves_root, root_name
from dinox.data.masks import masks_missing
from dinox.data.problems import Place, Problem, shown

DEFAULT_MAX_BAD_BOXES = 0.01

_ALWAYS_ALLOWED = 10
"""Boxes that may be left out however small the dataset is, unless none may: a few slips stop no training."""

_FIRST_IMAGES = 8
"""How many image files are looked for. If all are missing, the image folder is the wrong one."""


def check_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    *,
    annotated: bool = True,
    evaluated: bool = False,
    max_bad_boxes: float = DEFAULT_MAX_BAD_BOXES,
    allow_outside_image_root: bool = False,
    masked: bool = False,
) -> list[str]:
    """Check a COCO detection json and the folder of its images; return the class names in the order of their ids.

    Opens no image. Of several kinds of mistakes the first is explained and the others are counted.

    Args:
        json_file: categories, images and annotations; boxes are absolute (x, y, width, height).
        image_root: the folder that the images' ``file_name`` is relative to; None leaves it unchecked.
        annotated: False allows a file without ``annotations``, as those of test sets are.
        evaluated: annotations need the fields that pycocotools reads.
        max_bad_boxes: how many boxes may be left out, see ``most_bad_boxes``.
        allow_outside_image_root: let image paths lead out of ``image_root`` (see ``dinox.data.image_paths``).
        masked: annotations other than crowds need masks.

    Raises DataError naming the file and the field or ids.
    """
    coco = read_coco_json(json_file)
    check_sections(coco, json_file, annotated=annotated)
    problems = find_problems(coco)
    stopping = ("error", "evaluation") if evaluated else ("error",)
    errors = [problem for problem in problems if problem.severity in stopping]
    if image_root is not None and not allow_outside_image_root:
        errors += outside_paths(coco, image_root)
    errors += _too_many_bad_boxes(problems, len(coco["annotations"]), max_bad_boxes)
    if errors:
        others = {1: "", 2: " There is 1 other kind of mistake."}
        more = others.get(len(errors), f" There are {len(errors) - 1} other kinds of mistakes.")
        raise DataError(f"{json_file}: {errors[0]}{more}")
    if masked and (fault := masks_missing(coco["annotations"])):
        raise DataError(f"{json_file}: {fault}")
    if image_root is not None:
        _check_image_root(coco, json_file, image_root)
    return class_names(coco)


def class_names(coco: dict) -> list[str]:
    """In the order of their ids, as detectron2 numbers them."""
    return [category["name"] for category in sorted(coco["categories"], key=lambda category: category["id"])]


def most_bad_boxes(total: int, max_bad_boxes: float) -> int:
    """How many of ``total`` boxes may be left out, because they can be no object (see ``dinox.data.boxes``).

    ``max_bad_boxes``: a share from 0 to 1. It is rounded up, and means 10 boxes at least unless it is 0.
    """
    if not 0 <= max_bad_boxes <= 1:
        raise DataError(f"max_bad_boxes: expected a share of the annotations from 0 to 1, got {max_bad_boxes!r}")
    return max(_ALWAYS_ALLOWED, math.ceil(max_bad_boxes * total)) if max_bad_boxes > 0 else 0


def read_coco_json(json_file: str | os.PathLike) -> dict:
    """The content of a json file with a dataset. Raises DataError naming file, byte offset or key."""
    coco = read_json(json_file)
    if not isinstance(coco, dict):
        raise DataError(f"{json_file}: expected an object with images, annotations and categories, got {shown(coco)}.")
    return coco


def read_json(json_file: str | os.PathLike) -> Any:
    """The content of a json file. Raises DataError naming file and byte offset."""
    try:
        with open(json_file, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise DataError(f"Annotation file {json_file} not found (seen from {os.getcwd()}).") from error
    except OSError as error:
        raise DataError(f"Annotation file {json_file} cannot be read: {error.strerror}.") from error
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        offset = len(error.doc[: error.pos].encode())
        raise DataError(
            f"{json_file}: not valid json at byte {offset} of {len(content)} "
            f"(line {error.lineno}, column {error.colno}): {error.msg}. Write or download the file again."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{json_file}: not valid json: byte {error.start} of {len(content)} is no text.") from error
    except ValueError as error:  # Python reads no integer of thousands of digits
        raise DataError(f"{json_file}: not a COCO json: {error}.") from error
    except RecursionError as error:
        raise DataError(f"{json_file}: not a COCO json: it is nested too deeply.") from error


def dataset_root_hint() -> str:
    """Where detectron2 looks for datasets, as a sentence."""
    root = os.environ.get("DETECTRON2_DATASETS")
    now = f"is {root!r}" if root else "is not set, which means ./datasets"
    return (
        f"detectron2 looks for its own datasets below the folder in the environment variable DETECTRON2_DATASETS, "
        f"which {now} (seen from {os.getcwd()}). Set it to the folder of your datasets, or register the right path."
    )


def check_sections(coco: dict, json_file: str | os.PathLike, *, annotated: bool) -> None:
    """Check that images, categories and annotations are lists, and not empty where that means a mistake.

    Without ``annotated``, missing annotations become an empty list. Raises DataError naming the key.
    """
    for key, empty_allowed in (("images", False), ("categories", False), ("annotations", True)):
        if key == "annotations" and key not in coco and not annotated:
            coco[key] = []
        if key not in coco:
            found = ", ".join(sorted(map(str, coco))) or "nothing"
            raise DataError(
                f"{json_file}: no key '{key}' (found: {found}). Expected COCO's format, with a list '{key}'."
            )
        if not isinstance(coco[key], list):
            raise DataError(f"{json_file}: '{key}': expected a list, got {shown(coco[key])}.")
        if not coco[key] and not empty_allowed:
            raise DataError(f"{json_file}: '{key}' is empty: expected at least one entry.")


def outside_paths(coco: dict, image_root: str | os.PathLike) -> list[Problem]:
    """The images whose paths lead out of the image folder, as one problem or none."""
    places = tuple(
        Place(image.get("id"), f"'file_name': expected a path inside of the image folder, got {shown(name)}", name)
        for image in coco["images"]
        if isinstance(image, dict) and isinstance(name := image.get("file_name"), str) and leaves_root(name, image_root)
    )
    if not places:
        return []
    text = f"{places[0].detail}, which leads out of {root_name(image_root)}"
    cure = (
        f"If these files are meant to be read, allow it: {ALLOW_KEY}=True in the config's dataloader.train.dataset or "
        f"dataloader.test.dataset (dinox check-data: --{ALLOW_KEY.replace('_', '-')})."
    )
    return [Problem("outside-path", "error", "image", text, places, cure)]


def _too_many_bad_boxes(problems: list[Problem], total: int, max_bad_boxes: float) -> list[Problem]:
    bad = [problem for problem in problems if problem.kind in KINDS.values()]
    count, allowed = sum(len(problem.places) for problem in bad), most_bad_boxes(total, max_bad_boxes)
    if count <= allowed:
        return []
    cure = (
        f"In all, {count} of {total} annotations have boxes that can be no object; max_bad_boxes={max_bad_boxes:g} "
        f"allows {allowed}. Fix them, write a json without them (dinox check-data --fix), or raise max_bad_boxes of "
        f"the config's dataset: training then leaves them out, and evaluation counts them as missed."
    )
    first = bad[0]
    return [Problem(first.kind, "error", first.where, first.text, first.places, f"{first.cure} {cure}")]


def _check_image_root(coco: dict, json_file: str | os.PathLike, image_root: str | os.PathLike) -> None:
    if not os.path.isdir(image_root or "."):
        raise DataError(f"Image folder {image_root} of {json_file} not found. {dataset_root_hint()}")
    files = [os.path.join(image_root, image["file_name"]) for image in coco["images"][:_FIRST_IMAGES]]
    if not any(os.path.isfile(file) for file in files):
        raise DataError(
            f"{json_file}: no image found: none of the first {len(files)} files is there, for example {files[0]}. "
            f"The 'file_name' of an image has to be relative to the image folder {image_root}."
        )
