"""From a dataset dict to a model's input."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import Instances

from dinox.data.boxes import LEAST_SIDE
from dinox.data.checks import check_annotations
from dinox.data.conversions import CONVERSIONS
from dinox.data.errors import DataError
from dinox.data.images import LoadedImage, check_image_settings, load_image
from dinox.data.large_scale_jitter import content_size
from dinox.data.masks import CROWD_REGION, MASK_FORMATS, AugmentedImage, count_pixels, masks_of, region_of, tight_boxes
from dinox.data.workers import handed_over

logger = logging.getLogger(__name__)

_OTHER_FIELDS = ("segmentation", "keypoints")
"""Of annotations; they would be transformed in vain."""


class DetectionMapper:
    """detectron2's ``DatasetMapper`` for detection, with errors that name the file.

    In: a dict with ``file_name``, and in training ``annotations``. Out: the same dict (another object) with

    * ``image``: uint8 tensor (3, H, W), 0..255, channels in the order of ``image_format``, after the augmentations;
    * in training ``instances``: ``gt_boxes`` (absolute x1, y1, x2, y2 inside of the augmented image) and
      ``gt_classes``. Crowds are left out, and so are boxes that have no area, as after a crop. It may be empty;
    * with ``masks``, ``gt_masks`` (detectron2's BitMasks) besides, of at least one pixel each; boxes are the tight ones
      around them. An object so thin that its polygon has no pixel's centre is left out then, and kept without
      ``masks``, if its box is. Where there are crowds, ``crowd_region``: bool tensor (H, W);
    * ``content_size`` where the augmentations pad to the right and below: (height, width) of the rest of ``image``;
    * what a model is told (DN-DETR, section 5.7.1), from the annotations: ``known_boxes`` and ``known_labels`` with
      ``known_objects``, ``known_classes`` with ``known_labels``;
    * ``conversions`` if the file lost something on reading (see ``dinox.data.images``), such as transparency.

    ``height`` and ``width`` stay those of the image file: the size that detections are given in. A dict without them
    gets them.

    Args:
        is_train: whether to make ``instances``.
        augmentations: of detectron2, applied in this order.
        image_format: "RGB" or "BGR".
        num_classes: if given, class indices are checked against it. Datasets loaded by ``load_dataset_dicts`` are
            checked there.
        exif: "apply" turns images as their EXIF orientation says. "ignore" is for datasets whose boxes were drawn on
            the images as they are stored; training, evaluation and prediction have to do the same.
        known_objects: classes whose objects the model is told, by their indices; None: none.
        known_labels: whether the model is told which classes are in the image.
        max_pixels: a larger image is an error; None: Pillow's limit of 179 million pixels.
        masks: "bitmask" or "none". Annotations have polygons or run-length encodings, in any mixture.
        min_box_side: pixels; boxes whose width or height is not larger after the augmentations are left out.

    Raises DataError for an image that cannot be read (UnreadableImage if it is missing or damaged) or has another size
    than its dict says, and for annotations with a class index or a box that cannot be right.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        num_classes: int | None = None,
        exif: str = "apply",
        max_pixels: int | None = None,
        known_objects: Sequence[int] | None = None,
        known_labels: bool = False,
        masks: Literal["none", "bitmask"] = "none",
        min_box_side: float = LEAST_SIDE,
    ) -> None:
        if masks not in MASK_FORMATS:
            raise DataError(f"dataloader.train.mapper.masks: expected one of {', '.join(MASK_FORMATS)}, got {masks!r}")
        check_image_settings(image_format=image_format, exif=exif)
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.num_classes = num_classes
        self.exif = exif
        self.max_pixels = max_pixels
        self.known_objects = None if known_objects is None else _class_indices(known_objects, num_classes)
        self.known_labels = known_labels
        self.masks = masks
        self.min_box_side = min_box_side
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", list(augmentations))

    def __call__(self, record: dict) -> dict:
        if self.is_train or self.known_objects is not None or self.known_labels:
            check_annotations(record, num_classes=self.num_classes)
        loaded = load_image(record["file_name"], self.image_format, exif=self.exif, max_pixels=self.max_pixels)
        output = {**record, **self._checked_size(record, loaded)}
        if loaded.conversions:
            output[CONVERSIONS] = loaded.conversions

        augmented = T.AugInput(loaded.pixels)
        transforms = self.augmentations(augmented)
        output["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))

        annotations = output.pop("annotations", ())  # images of a dataset without annotations are background
        image = AugmentedImage(
            transforms, loaded.pixels.shape[:2], augmented.image.shape[:2], name=str(record["file_name"])
        )
        content = content_size(transforms, image.original_size, image.size)
        if content != image.size:
            output["content_size"] = content
        if self.is_train:
            output |= self._objects(annotations, image)
        output |= self._known(annotations, image)
        return output if self.is_train else handed_over(output)

    def _objects(self, annotations: Sequence[dict], image: AugmentedImage) -> dict:
        """What there is to learn of the image."""
        if self.masks == "none":
            return {"instances": self._instances(annotations, image)[0]}
        instances, annotations_left = self._instances(annotations, image)
        masks = masks_of(annotations_left, image)
        instances.gt_masks, instances.gt_boxes = masks, tight_boxes(masks)
        crowds = [annotation for annotation in annotations if annotation.get("iscrowd", 0) != 0]
        region = {CROWD_REGION: region_of(crowds, image)} if crowds else {}
        return {"instances": instances[count_pixels(masks) > 0], **region}

    def _instances(self, annotations: Sequence[dict], image: AugmentedImage) -> tuple[Instances, list[dict]]:
        """Classes and boxes in the frame of the augmented image, and the annotations that they are of."""
        objects = [annotation for annotation in annotations if annotation.get("iscrowd", 0) == 0]
        moved = [transform_instance_annotations(_only_box(each), image.transforms, image.size) for each in objects]
        instances = annotations_to_instances(moved, image.size)
        instances, kept = filter_empty_instances(instances, box_threshold=self.min_box_side, return_mask=True)
        return instances, [annotation for annotation, is_kept in zip(objects, kept.tolist()) if is_kept]

    def _known(self, annotations: Sequence[dict], image: AugmentedImage) -> dict:
        """What the model is told about the image."""
        known = {}
        if self.known_objects is not None:
            told = [annotation for annotation in annotations if annotation["category_id"] in self.known_objects]
            instances, _ = self._instances(told, image)
            known |= {"known_boxes": instances.gt_boxes, "known_labels": instances.gt_classes}
        if self.known_labels:
            instances, _ = self._instances(annotations, image)
            known["known_classes"] = sorted(set(instances.gt_classes.tolist()))
        return known

    def _checked_size(self, record: dict, loaded: LoadedImage) -> dict[str, int]:
        """The image's height and width. Raises DataError if the dict has other ones."""
        height, width = loaded.pixels.shape[:2]
        if "height" not in record and "width" not in record:
            return {"height": height, "width": width}
        annotated = (record.get("height"), record.get("width"))
        if annotated == (height, width):
            return {}
        name = f"{record['file_name']} (image id {record.get('image_id')})"
        expected = f"expected the image to be {annotated[1]} x {annotated[0]} pixels, as its annotation says"
        got = f"got {width} x {height}"
        if annotated != (width, height) or loaded.orientation == 1:
            cure = "Correct 'width' and 'height' (dinox check-data --fix writes them), or replace the image."
            raise DataError(f"{name}: {expected}, {got}. {cure}")
        got = f"{got} with the EXIF orientation {loaded.orientation}"
        if self.exif == "ignore":
            raise DataError(f"{name}: {expected}, {got}, which dataloader.train.mapper.exif=ignore does not apply.")
        raise DataError(
            f"{name}: {expected}, {got}, which is applied on reading. If its boxes were drawn on the image as viewers "
            f"show it, fix the json (dinox check-data --fix); if as it is stored, set "
            f"dataloader.train.mapper.exif=ignore."
        )


def _class_indices(classes: Any, num_classes: int | None) -> frozenset[int]:
    """Checked: a wrong one would match no object, and evaluation would tell the model nothing in silence."""
    listed = isinstance(classes, Iterable) and not isinstance(classes, str)
    wrong = [each for each in classes if not _is_class(each, num_classes)] if listed else [classes]
    if wrong:
        below = "" if num_classes is None else f" and below num_classes = {num_classes}"
        raise DataError(
            f"dataloader.test.mapper.known_objects: expected a list of class indices, whole numbers from 0{below}, got "
            f"{wrong[0]!r}"
        )
    return frozenset(classes)


def _is_class(index: Any, num_classes: int | None) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and 0 <= index < (num_classes or index + 1)


def _only_box(annotation: dict) -> dict:
    """A copy, since detectron2 transforms it in place; in floats, for it would cut off the decimals of a resized box
    that is given in whole numbers."""
    box = [float(number) for number in annotation["bbox"]]
    return {key: value for key, value in annotation.items() if key not in _OTHER_FIELDS} | {"bbox": box}
