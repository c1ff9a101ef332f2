"""DINO, EVA-02 Large with a simple feature pyramid, 4 scales, 12 epochs.

Nobody published this one; windows, drop path, learning rates and weight decay are Co-DETR's for its EVA-02 Large, which
takes them with 64 images a step after 500 steps of warm-up.
"""

from ....configs.common.backbones.eva02_large_4scale import (
    backbone as _backbone,
)
from ....configs.common.backbones.eva02_large_4scale import (
    pixel_mean as _pixel_mean,
)
from ....configs.common.backbones.eva02_large_4scale import (
    pixel_std as _pixel_std,
)
from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone
model.update(pixel_mean=_pixel_mean, pixel_std=_pixel_std)

optimizer.update(lr=5e-5, weight_decay=0.01)
optimizer.params.update(backbone_lr_factor=1.0, layer_decay=0.8, no_weight_decay=["pos_embed"])

# timm's eva02_large_patch14_224.mim_m38m; its patch embedding is resized to patches of 16.
train.init_checkpoint = "./eva02_large_patch14_224.safetensors"
train.output_dir = "./output/dino_eva02_large_4scale_12ep"
