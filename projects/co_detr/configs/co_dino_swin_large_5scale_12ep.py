"""Co-DINO, Swin-L, 5 scales, 12 epochs."""

from ....configs.common.backbones.swin_large_5scale import backbone as _backbone
from .co_dino_r50_5scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone
model.backbone.bottom_up.drop_path = 0.3

# As Microsoft publishes it: ImageNet-22k at 384 pixels.
train.init_checkpoint = "./swin_large_patch4_window12_384_22k.pth"
train.output_dir = "./output/co_dino_swin_large_5scale_12ep"
