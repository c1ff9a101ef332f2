"""Stable-DINO, Swin-L, 4 scales, 12 epochs."""

from ....configs.common.backbones.swin_large_4scale import backbone as _backbone
from .stable_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone

# As Microsoft publishes it: ImageNet-22k at 384 pixels.
train.init_checkpoint = "./swin_large_patch4_window12_384_22k.pth"
train.output_dir = "./output/stable_dino_swin_large_4scale_12ep"
