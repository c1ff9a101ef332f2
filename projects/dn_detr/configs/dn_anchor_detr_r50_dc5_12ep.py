"""Anchor DETR with denoising of its anchor points, ResNet-50 with dilated res5 (DC5), 12 epochs."""

from detectron2.config import LazyCall as L

from dinox.modeling import AnchorPoints

from ....configs.common.models.denoising import denoising as _denoising
from ...anchor_detr.configs.anchor_detr_r50_dc5_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.denoising = _denoising
model.query_groups.denoising.placement = L(AnchorPoints)()

train.output_dir = "./output/dn_anchor_detr_r50_dc5_12ep"
