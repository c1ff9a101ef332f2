"""Datasets and data loading. Importing this registers the embedded dataset and Objects365; it writes nothing."""

from dinox.data.augmentation import detr_augmentation, resize_augmentation
from dinox.data.checks import check_data, check_num_classes
from dinox.data.class_counts import ClassImageCounts
from dinox.data.class_split import split_classes
from dinox.data.coco_json import check_coco_json
from dinox.data.copy_paste import CopyPaste
from dinox.data.errors import DataError, UnreadableImage
from dinox.data.images import inspect_image, read_image
from dinox.data.large_scale_jitter import large_scale_jitter, resize_and_pad
from dinox.data.loader import build_train_loader, load_dataset_dicts
from dinox.data.mapper import DetectionMapper
from dinox.data.objects365 import register_objects365, split_objects365
from dinox.data.registration import register_coco
from dinox.data.sampling import RepeatFactorSampling
from dinox.data.shapes import register_default_shapes, register_shapes

__all__ = [
    "ClassImageCounts",
    "CopyPaste",
    "DataError",
    "DetectionMapper",
    "RepeatFactorSampling",
    "UnreadableImage",
    "build_train_loader",
    "check_coco_json",
    "check_data",
    "check_num_classes",
    "detr_augmentation",
    "inspect_image",
    "large_scale_jitter",
    "load_dataset_dicts",
    "read_image",
    "register_coco",
    "register_default_shapes",
    "register_objects365",
    "register_shapes",
    "resize_and_pad",
    "resize_augmentation",
    "split_classes",
    "split_objects365",
]

register_default_shapes()
register_objects365()
