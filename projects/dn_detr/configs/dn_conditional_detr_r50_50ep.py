"""Conditional DETR with denoising, ResNet-50, 50 epochs; not in the paper."""

from detectron2.config import LazyCall as L

from dinox.modeling import EmbeddedBoxes

from ....configs.common.models.denoising import denoising as _denoising
from ...conditional_detr.configs.conditional_detr_r50_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    schedule,
    train,
)

model.query_groups.denoising = _denoising
model.query_groups.denoising.placement = L(EmbeddedBoxes)(embed_dim="${....embed_dim}", anchor_dim=2)

train.output_dir = "./output/dn_conditional_detr_r50_50ep"
