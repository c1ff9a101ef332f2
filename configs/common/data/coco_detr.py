"""COCO 2017 with DETR's augmentation, 16 images per step."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from dinox.data import DetectionMapper, detr_augmentation, load_dataset_dicts, resize_augmentation

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(load_dataset_dicts)(names="coco_2017_train"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=L(detr_augmentation)(),
        image_format="RGB",
        num_classes="${model.num_classes}",  # of the whole config
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=L(resize_augmentation)(),
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
)
