"""Two-stage DAB-Deformable-DETR with denoising, ResNet-50, 50 epochs; not in the paper."""

from ....configs.common.models.denoising import denoising as _denoising
from ...dab_detr.configs.dab_deformable_detr_r50_two_stage_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    schedule,
    train,
)

model.query_groups.denoising = _denoising

train.output_dir = "./output/dn_dab_deformable_detr_two_stage_r50_50ep"
