"""DINO, ResNet-101, 4 scales, 12 epochs."""

from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.depth = 101

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "./output/dino_r101_4scale_12ep"
