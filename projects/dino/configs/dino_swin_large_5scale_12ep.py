"""DINO, Swin-L, 5 scales, 12 epochs."""

from ....configs.common.backbones.swin_large_5scale import backbone as _backbone
from .dino_swin_large_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone

train.output_dir = "./output/dino_swin_large_5scale_12ep"
