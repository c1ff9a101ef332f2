"""DETR, ResNet-50, 12 epochs."""

from .detr_r50_500ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/detr_r50_12ep"
