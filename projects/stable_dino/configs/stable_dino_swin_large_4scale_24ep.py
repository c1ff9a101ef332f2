"""Stable-DINO, Swin-L, 4 scales, 24 epochs."""

from .stable_dino_swin_large_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 24
schedule.drop_epochs = [20]

train.output_dir = "./output/stable_dino_swin_large_4scale_24ep"
