"""DINO with plain denoising (5 groups) in place of the contrastive one, ResNet-50, 12 epochs."""

from ....configs.common.models.denoising import denoising as _denoising
from ...dino.configs.dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.denoising = _denoising
model.query_groups.denoising.label_embedding.indicator = False  # as in DINO

train.output_dir = "./output/dino_dn_r50_4scale_12ep"
