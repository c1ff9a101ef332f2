"""Co-DINO, ResNet-50, 5 scales, 24 epochs."""

from .co_dino_r50_5scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 24
schedule.drop_epochs = [20]

train.output_dir = "./output/co_dino_r50_5scale_24ep"
