"""Masks of annotations in the frame of the augmented image.

Legend: M objects, H, W height and width of the augmented image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, polygons_to_bitmask
from pycocotools import mask as mask_util
from torch import Tensor

from dinox.data.errors import DataError
from dinox.data.problems import listed, shown
from dinox.data.run_lengths import run_length_fault

MASK_FORMATS = ("none", "bitmask")
CROWD_REGION = "crowd_region"
"""The key of a model's input that says where crowds are."""

MASK_CURE = (
    "Annotate the objects' masks ('segmentation': polygons or run-length encoding), or train without: "
    "dataloader.train.mapper.masks=none and dataloader.train.copy_paste=null, and no head that needs masks."
)

COPY_PASTE_WITHOUT_MASKS = (
    "dataloader.train.copy_paste needs the objects' masks: set dataloader.train.mapper.masks=bitmask, or "
    "dataloader.train.copy_paste=null"
)


@dataclass(frozen=True)
class AugmentedImage:
    """What became of an image. transforms: that were applied. original_size, size: (height, width) in pixels before and
    after. name: of the image, for messages."""

    transforms: T.TransformList
    original_size: tuple[int, int]
    size: tuple[int, int]
    name: str


def mask_fault(annotation: dict) -> str | None:
    """Why ``segmentation`` is no mask; None if it is one: a whole run-length encoding, or polygons of 3 or more
    points each."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return run_length_fault(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return f"'segmentation': expected polygons or a run-length encoding, got {shown(segmentation)}"
    for polygon in segmentation:
        if not _is_polygon(polygon):
            expected = "expected polygons of at least 3 points, [x1, y1, x2, y2, ...], of finite numbers"
            return f"'segmentation': {expected}, got {shown(polygon)}"
    return None


def has_mask(annotation: dict) -> bool:
    """Whether ``segmentation`` is a mask that can be read."""
    return mask_fault(annotation) is None


def masks_missing(annotations: Sequence[dict]) -> str | None:
    """Which annotations have no mask, as a sentence with the cure; None if all have one. Crowds need none, but where
    they have one it has to be readable."""
    faults = [(each, fault) for each in annotations if _needs_mask(each) and (fault := mask_fault(each))]
    if not faults:
        return None
    ids = [each["id"] for each, _ in faults if "id" in each]
    named = f" (ids {listed(ids, total=len(ids))})" if ids else ""
    return (
        f"{len(faults)} of {len(annotations)} annotations have no mask{named}, and masks are asked for. The first one: "
        f"{faults[0][1]}. {MASK_CURE}"
    )


def _needs_mask(annotation: dict) -> bool:
    return annotation.get("iscrowd", 0) == 0 or bool(annotation.get("segmentation"))


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, (list, tuple, np.ndarray)) or len(polygon) < 6 or len(polygon) % 2 != 0:
        return False
    try:
        numbers = np.asarray(polygon)
    except ValueError:  # lists of different lengths
        return False
    return numbers.ndim == 1 and numbers.dtype.kind in "iuf" and bool(np.isfinite(numbers).all())


def masks_of(annotations: Sequence[dict], image: AugmentedImage) -> BitMasks:
    """(M, H, W). Raises DataError for an annotation without a mask, and for a run-length encoding that is damaged or of
    another size."""
    masks = [_mask_of(annotation, image) for annotation in annotations]
    if not masks:
        return BitMasks(torch.zeros((0, *image.size), dtype=torch.bool))
    return BitMasks(torch.from_numpy(np.stack(masks)))


def region_of(annotations: Sequence[dict], image: AugmentedImage) -> Tensor:
    """(H, W) bool: the union of the masks, or of the boxes where there are none, as of crowds. Raises DataError for a
    mask that cannot be read."""
    region = np.zeros(image.size, dtype=bool)
    for annotation in annotations:
        if not annotation.get("segmentation"):
            x1, y1, x2, y2 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            annotation = {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        region |= _mask_of(annotation, image)
    return torch.from_numpy(region)


def _mask_of(annotation: dict, image: AugmentedImage) -> np.ndarray:
    """(H, W) bool."""
    fault = mask_fault(annotation)
    if fault is not None:
        raise DataError(
            f"{image.name}: the annotation of class {annotation.get('category_id')} with the box {annotation['bbox']} "
            f"has no mask, and masks are asked for. {fault}. {MASK_CURE}"
        )
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        mask = image.transforms.apply_segmentation(_decoded(segmentation, image))
    else:
        # The corners, rasterised once and at the end: sharper than a mask that is resized. What lies outside of the
        # image is cut off there. (detectron2 cuts polygons at every crop, for which it needs one more package.)
        corners = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        moved = [image.transforms.apply_coords(each).reshape(-1) for each in corners]
        mask = polygons_to_bitmask(moved, *image.size)
    return np.ascontiguousarray(mask).astype(bool)


def _decoded(encoded: dict, image: AugmentedImage) -> np.ndarray:
    """(height, width) uint8 of the image as it is in the file."""
    if tuple(encoded["size"]) != tuple(image.original_size):
        raise DataError(
            f"{image.name}: a mask's run-length encoding has the size {list(encoded['size'])}, expected the image's "
            f"height and width {list(image.original_size)}. Encode it for this image."
        )
    if isinstance(encoded["counts"], list):  # not compressed
        encoded = mask_util.frPyObjects(encoded, *encoded["size"])
    return mask_util.decode(encoded)


def count_pixels(masks: BitMasks) -> Tensor:
    """(M,) int64, on the CPU. (torch sums bools slowly.)"""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.tensor.numpy()], dtype=torch.int64)


def tight_boxes(masks: BitMasks) -> Boxes:
    """Absolute (x1, y1, x2, y2) around the pixels of every mask; zeros where there are none."""
    return masks.get_bounding_boxes()
