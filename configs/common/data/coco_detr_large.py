"""COCO 2017 with DETR's augmentation at 1.5 times the size: shorter edge 720 to 1200, longer edge at most 2000 (DINO,
appendix D.2 and D.3)."""

from .coco_detr import dataloader

dataloader.train.mapper.augmentations.update(
    short_edges=list(range(720, 1201, 48)),
    max_size=2000,
    crop_short_edges=[600, 750, 900],
    crop_size=[576, 900],
)
dataloader.test.mapper.augmentations.update(short_edge=1200, max_size=2000)
