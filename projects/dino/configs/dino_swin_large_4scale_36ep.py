"""DINO, Swin-L, 4 scales, 36 epochs."""

from .dino_swin_large_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/dino_swin_large_4scale_36ep"
