"""Mask R-CNN as the only auxiliary head (table 8); the data needs masks."""

from detectron2.config import LazyCall as L

from dinox.modeling import MaskBranch

from .co_deformable_detr_plain_r50_36ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.auxiliary_heads.update(atss=None)
model.auxiliary_heads.roi.mask_branch = L(MaskBranch)(embed_dim="${....embed_dim}", num_classes="${....num_classes}")
model.query_groups.positive_atss = None

dataloader.train.mapper.masks = "bitmask"

train.output_dir = "./output/co_detr_ablation_mask_rcnn"
