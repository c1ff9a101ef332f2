"""DN-DETR, ResNet-50 with dilated res5 (DC5), 25 epochs."""

from .dn_detr_r50_dc5_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 25
schedule.drop_epochs = [20]

train.output_dir = "./output/dn_detr_r50_dc5_25ep"
