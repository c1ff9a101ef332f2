"""Co-Deformable-DETR++, Swin-T, 12 epochs."""

from ....configs.common.backbones.swin_tiny_4scale import backbone as _backbone
from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone

optimizer.weight_decay = 0.05

# As Microsoft publishes it: ImageNet-1k at 224 pixels.
train.init_checkpoint = "./swin_tiny_patch4_window7_224.pth"
train.output_dir = "./output/co_deformable_detr_swin_tiny_12ep"
