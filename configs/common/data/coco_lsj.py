"""COCO 2017 with large-scale jitter to a square of 1024 pixels and copy-paste (Co-DINO's longer and LSJ recipes).

Without copy-paste: dataloader.train.copy_paste=null dataloader.train.mapper.masks=none. For a model with a mask head:
dataloader.train.copy_paste.masks=keep.
"""

from detectron2.config import LazyCall as L

from dinox.data import CopyPaste, large_scale_jitter, resize_and_pad
from dinox.data.large_scale_jitter import MIN_BOX_SIDE

from .coco_detr import dataloader

dataloader.train.mapper.augmentations = L(large_scale_jitter)(size=1024, min_scale=0.1, max_scale=2.0, pad_value=114)
dataloader.train.mapper.masks = "bitmask"
dataloader.train.mapper.min_box_side = MIN_BOX_SIDE
dataloader.train.copy_paste = L(CopyPaste)(max_pasted=100, masks="drop", seed=0)
dataloader.train.aspect_ratio_grouping = False  # all images are squares

dataloader.test.mapper.augmentations = L(resize_and_pad)(
    size="${dataloader.train.mapper.augmentations.size}", pad_value="${dataloader.train.mapper.augmentations.pad_value}"
)
