"""DETR, ResNet-50 with dilated res5 (DC5), 500 epochs."""

from .detr_r50_500ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.res5_dilation = 2

train.output_dir = "./output/detr_r50_dc5_500ep"
