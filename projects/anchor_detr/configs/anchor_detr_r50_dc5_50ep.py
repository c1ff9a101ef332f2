"""Anchor DETR, ResNet-50 with dilated res5 (DC5), 50 epochs."""

from .anchor_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.res5_dilation = 2

train.output_dir = "./output/anchor_detr_r50_dc5_50ep"
