"""DAB-DETR, ResNet-50 with dilated res5 (DC5), 3 patterns, 12 epochs."""

from .dab_detr_r50_3patterns_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.res5_dilation = 2

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/dab_detr_r50_dc5_3patterns_12ep"
