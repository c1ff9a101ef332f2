"""Stable-DINO, ResNet-50, 5 scales, 12 epochs."""

from ....configs.common.backbones.resnet_5scale import backbone as _backbone
from .stable_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone

train.output_dir = "./output/stable_dino_r50_5scale_12ep"
