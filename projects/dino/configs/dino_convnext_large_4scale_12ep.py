"""DINO, ConvNeXt-L, 4 scales, 12 epochs."""

from ....configs.common.backbones.convnext_large_4scale import backbone as _backbone
from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone

# timm's convnext_large.fb_in22k
train.init_checkpoint = "./convnext_large.safetensors"
train.output_dir = "./output/dino_convnext_large_4scale_12ep"
