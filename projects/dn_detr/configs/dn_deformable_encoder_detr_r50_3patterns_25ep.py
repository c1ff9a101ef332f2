"""DN-DETR with a deformable encoder only, ResNet-50, 3 patterns, 25 epochs."""

from .dn_deformable_encoder_detr_r50_3patterns_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 25
schedule.drop_epochs = [20]

train.output_dir = "./output/dn_deformable_encoder_detr_r50_3patterns_25ep"
