"""Datasets and data loading. Importing this registers the embedded dataset; it writes nothing."""

from .augmentation import detr_augmentation, resize_augmentation
from .checks import check_coco_json, check_data, check_num_classes
from .errors import DataError
from .loader import load_dataset_dicts
from .mapper import DetectionMapper
from .shapes import register_default_shapes, register_shapes

__all__ = [
    "DataError",
    "DetectionMapper",
    "check_coco_json",
    "check_data",
    "check_num_classes",
    "detr_augmentation",
    "load_dataset_dicts",
    "register_default_shapes",
    "register_shapes",
    "resize_augmentation",
]

register_default_shapes()
