"""The files of the embedded dataset "shapes": JPEG images and one COCO json, written once and whole.

A dataset is written into a hidden folder beside its final place and renamed when it is complete: the final folder
exists with everything in it, or not at all, whenever the writing stops. Processes that want the same dataset wait for
the first one.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from dinox.data.shapes.scene import CLASS_NAMES, MIN_SIZE, Scene, SceneObject, make_scene

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 5
"""Part of every dataset's folder name. Raise it with any change of pixels or annotations: old files are left aside."""

DEFAULT_SIZE = 192

CATEGORY_IDS = dict(zip(CLASS_NAMES, (1, 2, 4, 7, 8, 11), strict=True))
"""Class name -> category id of the json. With gaps, as in COCO, so that nothing can take ids for indices unnoticed."""

ANNOTATIONS_FILE = "annotations.json"
IMAGES_FOLDER = "images"

_BLOCK = 20  # images; exactly one of each block is without objects (5 %) and one other has a crowd
_JPEG_OPTIONS = {"quality": 92, "subsampling": 0}
_SCENE_STREAM, _BLOCK_STREAM = 0, 1  # independent random streams of one seed


@dataclass(frozen=True)
class ShapesSpec:
    """What determines a dataset, pixel for pixel. Image i is the same for every ``num_images`` > i.

    ``size``: height and width of the images in pixels.
    """

    seed: int
    num_images: int
    size: int = DEFAULT_SIZE

    def __post_init__(self) -> None:
        for field, least in (("seed", 0), ("num_images", 1), ("size", MIN_SIZE)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"shapes dataset: expected {field} to be an integer >= {least}, got {value!r}")

    @property
    def folder_name(self) -> str:
        return f"v{GENERATOR_VERSION}_seed{self.seed}_images{self.num_images}_size{self.size}"


def generate_scene(spec: ShapesSpec, index: int) -> Scene:
    """The scene of image ``index`` (from 0)."""
    block, position = divmod(index, _BLOCK)
    empty, crowd = np.random.default_rng([spec.seed, _BLOCK_STREAM, block]).choice(_BLOCK, size=2, replace=False)
    rng = np.random.default_rng([spec.seed, _SCENE_STREAM, index])
    return make_scene(rng, size=spec.size, empty=position == empty, crowd=position == crowd)


def ensure_dataset(spec: ShapesSpec, folder: Path) -> None:
    """Write the dataset to ``folder`` unless it is there. Safe to interrupt and to call from several processes at once.

    Raises FileExistsError if ``folder`` exists with something else in it, OSError if it cannot be written.
    """
    if folder.exists():
        if not _is_complete(folder):
            raise FileExistsError(
                f"{folder} exists without {ANNOTATIONS_FILE}, so it is no shapes dataset: move it away and try again"
            )
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent) as locked:
            # Another process may have written it while this one waited.
            if not _is_complete(folder):
                _write_and_rename(spec, folder, remove_leftovers=locked)
    except OSError as error:
        message = (
            f"cannot write the shapes dataset: {error.strerror or error}; make room for it, or set DETECTRON2_DATASETS "
            "to a folder that can be written to"
        )
        raise OSError(error.errno, message, str(folder)) from error


def _is_complete(folder: Path) -> bool:
    return (folder / ANNOTATIONS_FILE).is_file()


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Let one process at a time through. Yields False where the file system knows no locks.

    The system frees the lock of a process that dies.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False  # the rename keeps the result whole all the same; only the work may be done twice
        yield locked
    finally:
        os.close(descriptor)


def _write_and_rename(spec: ShapesSpec, folder: Path, *, remove_leftovers: bool) -> None:
    if remove_leftovers:
        for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        partial.mkdir()
        _write(spec, partial, final_folder=folder)
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, folder: Path) -> None:
    """Give the complete dataset its name; if another process was faster, keep that one's, which is the same."""
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not _is_complete(folder):
            raise


def _write(spec: ShapesSpec, folder: Path, *, final_folder: Path) -> None:
    """Write images and annotations into ``folder``; ``final_folder`` is only for the log."""
    start = time.perf_counter()
    (folder / IMAGES_FOLDER).mkdir()
    images, annotations = [], []
    for index in tqdm(range(spec.num_images), desc=f"writing shapes, seed {spec.seed}", unit="image", mininterval=1.0):
        scene = generate_scene(spec, index)
        image_record = _image_record(scene, image_id=index + 1)
        Image.fromarray(scene.image).save(folder / IMAGES_FOLDER / image_record["file_name"], **_JPEG_OPTIONS)
        images.append(image_record)
        for scene_object in scene.objects:
            # pycocotools takes annotation id 0 for "no match", so ids start at 1.
            annotations.append(
                _annotation(scene_object, annotation_id=len(annotations) + 1, image_id=image_record["id"])
            )
    # Last, since the presence of this file says that the dataset is complete.
    (folder / ANNOTATIONS_FILE).write_text(json.dumps(_coco_json(spec, images, annotations), separators=(",", ":")))
    seconds = time.perf_counter() - start
    logger.info("Wrote %d images with %d objects in %.0f s: %s", len(images), len(annotations), seconds, final_folder)


def _image_record(scene: Scene, *, image_id: int) -> dict:
    height, width = scene.image.shape[:2]
    return {"id": image_id, "file_name": f"{image_id:06d}.jpg", "height": height, "width": width}


def _annotation(scene_object: SceneObject, *, annotation_id: int, image_id: int) -> dict:
    """One COCO annotation of the visible pixels; ``full_area`` (ours) is the ``area`` if nothing hid it."""
    rle = mask_util.encode(np.asfortranarray(scene_object.visible, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[CLASS_NAMES[scene_object.class_index]],
        "bbox": [int(value) for value in mask_util.toBbox(rle)],
        "area": int(mask_util.area(rle)),
        "full_area": scene_object.full_area,
        "iscrowd": int(scene_object.is_crowd),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


def _coco_json(spec: ShapesSpec, images: list[dict], annotations: list[dict]) -> dict:
    return {
        "info": {
            "description": "dinox shapes: a synthetic detection dataset",
            "version": str(GENERATOR_VERSION),
            "seed": spec.seed,
            "size": spec.size,
        },
        "licenses": [],
        "categories": [
            {"id": category_id, "name": name, "supercategory": "shape"} for name, category_id in CATEGORY_IDS.items()
        ],
        "images": images,
        "annotations": annotations,
    }
