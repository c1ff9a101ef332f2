"""Co-Deformable-DETR++, ResNet-101, 12 epochs."""

from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.depth = 101

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"

train.output_dir = "./output/co_deformable_detr_r101_12ep"
