"""Copy-paste (Ghiasi et al. 2021): objects of one image, cut out by their masks, are put upon another image.

Both images went through the augmentations before, large-scale jitter as a rule, and are of one size. Numbers are those
of Co-DETR's code; that draws up to 99 of 100 objects, and never all of an image with more. Here all may be drawn.

Legend: M objects, H, W height and width of the images.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from dinox.data.errors import DataError
from dinox.data.masks import CROWD_REGION, count_pixels, tight_boxes
from dinox.utils.ranges import check_range, check_whole

MAX_PASTED = 100
BOX_MOVED = 10.0
MASK_LEFT = 300

_FIELDS = {"gt_boxes", "gt_classes", "gt_masks"}
_TOLD = ("known_boxes", "known_labels", "known_classes")


def choose_objects(total: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of the objects to paste: how many is drawn from 0 to all (or ``most``), then which."""
    number = int(generator.integers(min(total, most) + 1))
    return generator.choice(total, size=number, replace=False)


def clear_of(masks: BitMasks, region: Tensor) -> Tensor:
    """(M,) bool: the masks without a pixel in ``region``, (H, W) bool."""
    return ~(masks.tensor & region).flatten(1).any(1)


def visible_objects(
    instances: Instances, covered: Tensor, *, box_moved: float = BOX_MOVED, mask_left: int = MASK_LEFT
) -> Instances:
    """What can be seen of objects of which the pixels ``covered``, (H, W) bool, are hidden.

    Masks lose those pixels, boxes are the tight ones around the rest. Objects are dropped of which nothing is left; and
    those whose box moved by more than ``box_moved`` pixels at one of its sides, if no more than ``mask_left`` pixels
    are left of them. (bbox_occluded_thr and mask_occluded_thr in mmdetection, which has no first rule: a hidden object
    in the upper left corner keeps a box of no pixels there.)
    """
    masks = BitMasks(instances.gt_masks.tensor & ~covered)
    boxes = tight_boxes(masks)
    left = count_pixels(masks)
    stayed = ((boxes.tensor - instances.gt_boxes.tensor).abs() <= box_moved).all(1)
    kept = (left > 0) & (stayed | (left > mask_left))
    return Instances(
        instances.image_size, gt_boxes=boxes[kept], gt_classes=instances.gt_classes[kept], gt_masks=masks[kept]
    )


def paste(
    image: Tensor,
    instances: Instances,
    other_image: Tensor,
    other: Instances,
    *,
    box_moved: float = BOX_MOVED,
    mask_left: int = MASK_LEFT,
) -> tuple[Tensor, Instances]:
    """The pixels of all objects of ``other`` upon ``image``; what can be seen of the image's own objects comes first.

    image, other_image: (C, H, W). Pasted objects keep masks and boxes: none of them hides another one that it did not
    hide in its own image.
    """
    covered = other.gt_masks.tensor.any(0)  # (H, W)
    own = visible_objects(instances, covered, box_moved=box_moved, mask_left=mask_left)
    together = Instances(
        instances.image_size,
        gt_boxes=Boxes.cat([own.gt_boxes, other.gt_boxes]),
        gt_classes=torch.cat([own.gt_classes, other.gt_classes]),
        gt_masks=BitMasks.cat([own.gt_masks, other.gt_masks]),
    )
    return torch.where(covered, other_image, image), together


class CopyPaste:
    """Paste a random subset of a second image's objects upon an image; both come from the mapper.

    Crowd regions are no objects and are not pasted. Nothing is pasted upon one either, or what is left of the crowd
    could no longer be told from background: objects that would touch it are left out.

    Args:
        max_pasted: at most so many objects are pasted.
        box_moved, mask_left: pixels, see ``visible_objects``.
        masks: "keep" leaves ``gt_masks`` in the result, for a model with a mask head; "drop" saves their way to it.
        seed: of what is drawn: the second image and its objects. They depend on it and on the place in the stream of
            training images, not on worker processes.
    """

    def __init__(
        self,
        *,
        max_pasted: int = MAX_PASTED,
        box_moved: float = BOX_MOVED,
        mask_left: int = MASK_LEFT,
        masks: Literal["drop", "keep"] = "drop",
        seed: int = 0,
    ) -> None:
        if masks not in ("drop", "keep"):
            raise DataError(f"dataloader.train.copy_paste.masks: expected 'drop' or 'keep', got {masks!r}")
        for name, value in (("max_pasted", max_pasted), ("mask_left", mask_left), ("seed", seed)):
            check_whole(f"dataloader.train.copy_paste.{name}", value, 0)
        check_range("dataloader.train.copy_paste.box_moved", box_moved, 0)
        self.max_pasted, self.box_moved, self.mask_left = max_pasted, box_moved, mask_left
        self.masks, self.seed = masks, seed

    def generator(self, index: int, visit: int) -> np.random.Generator:
        """Of one training image: its place ``index`` in the dataset, and in the stream of images, ``visit``."""
        return np.random.default_rng([self.seed, index, visit])

    def __call__(self, image: dict, other: dict, generator: np.random.Generator) -> dict:
        """image, other: outputs of ``DetectionMapper`` with masks. Raises DataError for what cannot be pasted."""
        for each in (image, other):
            _check(each)
        if image["image"].shape != other["image"].shape:
            sizes = " and ".join(" x ".join(map(str, each["image"].shape[:0:-1])) for each in (image, other))
            raise DataError(
                f"copy-paste needs images of one size, got {sizes} ({_name(image)} and {_name(other)}): let "
                "dataloader.train.mapper.augmentations end with a fixed size, as dinox.data.large_scale_jitter does"
            )
        candidates = other["instances"]
        if CROWD_REGION in image:
            candidates = candidates[clear_of(candidates.gt_masks, image[CROWD_REGION])]
        chosen = torch.from_numpy(choose_objects(len(candidates), self.max_pasted, generator))
        pixels, instances = image["image"], image["instances"]
        if len(chosen) > 0:
            pixels, instances = paste(
                pixels,
                instances,
                other["image"],
                candidates[chosen],
                box_moved=self.box_moved,
                mask_left=self.mask_left,
            )
        if self.masks == "drop":
            instances = _without_masks(instances)
        # Objects may be in what was padding, as they are in Co-DETR's code.
        result = {key: value for key, value in image.items() if key not in (CROWD_REGION, "content_size")}
        return result | {"image": pixels, "instances": instances}


def _without_masks(instances: Instances) -> Instances:
    return Instances(instances.image_size, gt_boxes=instances.gt_boxes, gt_classes=instances.gt_classes)


def _check(image: dict) -> None:
    fields = set(image["instances"].get_fields())
    if "gt_masks" not in fields:
        raise DataError(
            f"copy-paste needs masks, and {_name(image)} comes without: set dataloader.train.mapper.masks=bitmask"
        )
    unknown: Sequence[str] = sorted(fields - _FIELDS) + [key for key in _TOLD if key in image]
    if unknown:
        raise DataError(
            f"copy-paste knows boxes, classes and masks only, and {_name(image)} comes with {', '.join(unknown)}, "
            "which it would leave as they are: let the mapper leave them out, or set dataloader.train.copy_paste=null"
        )


def _name(image: dict) -> str:
    return str(image.get("file_name", "an image"))
