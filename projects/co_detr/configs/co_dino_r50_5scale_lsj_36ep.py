"""Co-DINO++, ResNet-50, 5 scales, 36 epochs."""

from .co_dino_r50_5scale_lsj_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/co_dino_r50_5scale_lsj_36ep"
