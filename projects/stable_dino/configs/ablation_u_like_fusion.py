"""Stable-DINO with U-like memory fusion, of late encoder layers and early ones: table 6, row 5."""

from ....configs.common.models.memory_fusion import u_like_fusion as _fusion
from .stable_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.encoder.fusion = _fusion

train.output_dir = "./output/stable_dino_ablation_u_like_fusion"
