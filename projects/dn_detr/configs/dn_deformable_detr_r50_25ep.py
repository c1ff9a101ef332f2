"""DN-Deformable-DETR, ResNet-50, 25 epochs; with "++" in the paper's tables."""

from .dn_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 25
schedule.drop_epochs = [20]

train.output_dir = "./output/dn_deformable_detr_r50_25ep"
