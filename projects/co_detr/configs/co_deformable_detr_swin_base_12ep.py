"""Co-Deformable-DETR++, Swin-B, 12 epochs."""

from ....configs.common.backbones.swin_base_4scale import backbone as _backbone
from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone

optimizer.weight_decay = 0.05

# As Microsoft publishes it: ImageNet-22k at 384 pixels.
train.init_checkpoint = "./swin_base_patch4_window12_384_22k.pth"
train.output_dir = "./output/co_deformable_detr_swin_base_12ep"
