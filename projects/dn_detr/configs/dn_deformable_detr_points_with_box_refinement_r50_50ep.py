"""Deformable DETR with box refinement and denoising, ResNet-50, 50 epochs; not in the paper."""

from detectron2.config import LazyCall as L

from dinox.modeling import EmbeddedBoxes

from ....configs.common.models.denoising import denoising as _denoising
from ...deformable_detr.configs.deformable_detr_r50_with_box_refinement_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    schedule,
    train,
)

model.query_groups.denoising = _denoising
model.query_groups.denoising.placement = L(EmbeddedBoxes)(embed_dim="${....embed_dim}", anchor_dim=2)

train.output_dir = "./output/dn_deformable_detr_points_with_box_refinement_r50_50ep"
