"""DN-DETR with a deformable encoder only, ResNet-50, 3 patterns, 12 epochs."""

from .dn_deformable_encoder_detr_r50_3patterns_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/dn_deformable_encoder_detr_r50_3patterns_12ep"
