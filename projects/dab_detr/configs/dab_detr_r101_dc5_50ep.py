"""DAB-DETR, ResNet-101 with dilated res5 (DC5), 50 epochs."""

from .dab_detr_r101_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.res5_dilation = 2

train.output_dir = "./output/dab_detr_r101_dc5_50ep"
