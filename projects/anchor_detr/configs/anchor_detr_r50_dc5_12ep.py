"""Anchor DETR, ResNet-50 with dilated res5 (DC5), 12 epochs."""

from .anchor_detr_r50_dc5_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/anchor_detr_r50_dc5_12ep"
