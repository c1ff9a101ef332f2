"""DETR, ResNet-50, 300 epochs."""

from .detr_r50_500ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 300
schedule.drop_epochs = [200]

train.output_dir = "./output/detr_r50_300ep"
