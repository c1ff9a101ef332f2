"""Anchor DETR, ResNet-101, 50 epochs."""

from .anchor_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.depth = 101

# torchvision's ResNet-101, as detectron2's tools/convert-torchvision-to-d2.py writes it; nobody hosts that file.
train.init_checkpoint = "./R-101.pkl"
train.output_dir = "./output/anchor_detr_r101_50ep"
