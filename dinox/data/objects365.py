"""Objects365 (v2, Shao et al. 2019) for pre-training, split as DINO does (appendix D.2).

The folder of all datasets, ``$DETECTRON2_DATASETS``, has::

    objects365/
      annotations/zhiyuan_objv2_train.json, zhiyuan_objv2_val.json
      train/, val/                   what the json files' file names (images/v1/patch0/...) are relative to

``split_objects365()`` writes objects365_val_first5000.json and objects365_val_rest.json beside these.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinox.data.coco_json import read_coco_json
from dinox.data.errors import DataError
from dinox.data.registration import register_coco
from dinox.utils.json_files import write_json

OBJECTS365_KEPT = 5_000
"""The first images of the validation set, which stay for validation (DINO, appendix D.2)."""

_TRAIN_IMAGES, _VAL_IMAGES = 1_742_289, 80_000
OBJECTS365_IMAGES_PER_EPOCH = _TRAIN_IMAGES + _VAL_IMAGES - OBJECTS365_KEPT
"""What one epoch of pre-training counts as."""

_FILES = {
    "objects365_train": ("zhiyuan_objv2_train.json", "train"),
    "objects365_val": ("zhiyuan_objv2_val.json", "val"),
    "objects365_val_first5000": ("objects365_val_first5000.json", "val"),
    "objects365_val_rest": ("objects365_val_rest.json", "val"),
}


def register_objects365(root: str | os.PathLike | None = None) -> None:
    """Register "objects365_train", "objects365_val" and the two parts of the latter: "objects365_val_first5000" and
    "objects365_val_rest". Touches no file; names of classes are those of the json.

    root: the folder of all datasets; by default ``$DETECTRON2_DATASETS``, else ``datasets``, as in detectron2.
    """
    for name, (json_file, images) in _FILES.items():
        register_coco(name, _folder(root) / "annotations" / json_file, _folder(root) / images)


def split_objects365(root: str | os.PathLike | None = None, *, num_kept: int = OBJECTS365_KEPT) -> tuple[Path, Path]:
    """Write the two parts of the validation set; returns their files: the first ``num_kept`` images, and the rest.

    The split is that of the paper: by the order of the images in the json, nothing is drawn.

    Raises DataError: the json is missing or no COCO json, or has no more images than are kept.
    """
    folder = _folder(root) / "annotations"
    source, kept, rest = (
        folder / _FILES[name][0] for name in ("objects365_val", "objects365_val_first5000", "objects365_val_rest")
    )
    first, others = split_first_images(read_coco_json(source), num_kept)
    if not others["images"]:
        raise DataError(f"{source}: expected more than {num_kept} images to split, got {len(first['images'])}")
    write_json(kept, first)
    write_json(rest, others)
    return kept, rest


def split_first_images(coco: Mapping[str, Any], count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A json in COCO's format in two: its first ``count`` images with their annotations, and all others with theirs.

    Everything else, such as the categories, is in both.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1 image to keep, got {count}")
    first_ids = {image["id"] for image in coco["images"][:count]}

    def part(of_first: bool) -> dict[str, Any]:
        annotations = [a for a in coco["annotations"] if (a["image_id"] in first_ids) is of_first]
        images = [image for image in coco["images"] if (image["id"] in first_ids) is of_first]
        return {**coco, "images": images, "annotations": annotations}

    return part(True), part(False)


def _folder(root: str | os.PathLike | None) -> Path:
    root = os.environ.get("DETECTRON2_DATASETS", "datasets") if root is None else root
    return Path(root).expanduser() / "objects365"
