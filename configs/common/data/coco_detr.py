"""COCO 2017 with DETR's augmentation, 16 images per step."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import OmegaConf

from dinox.data import (
    DetectionMapper,
    build_train_loader,
    detr_augmentation,
    load_dataset_dicts,
    resize_augmentation,
)
from dinox.evaluation import CocoEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(load_dataset_dicts)(names="coco_2017_train"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=L(detr_augmentation)(),
        image_format="RGB",
        exif="apply",
        max_pixels=None,
        num_classes="${model.num_classes}",  # of the whole config
    ),
    total_batch_size=16,
    num_workers=4,
    max_bad=0.01,  # the share of images that may be unreadable; those are replaced, and listed in skipped.csv
    output_dir="${train.output_dir}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_dataset_dicts)(
        names="coco_2017_val",
        filter_empty=False,
        numbered_like="${...train.dataset.names}",
        max_bad_boxes=0,  # evaluation would count them as missed objects
    ),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=L(resize_augmentation)(),
        image_format="${...train.mapper.image_format}",
        exif="${...train.mapper.exif}",
        max_pixels="${...train.mapper.max_pixels}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(CocoEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
)
