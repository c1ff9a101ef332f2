"""Stable-DINO with simple memory fusion, of the last encoder layer and its input: table 6, row 4."""

from ....configs.common.models.memory_fusion import simple_fusion as _fusion
from .stable_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.encoder.fusion = _fusion

train.output_dir = "./output/stable_dino_ablation_simple_fusion"
