"""DETR with denoising of embedded boxes, ResNet-50, 250 epochs."""

from .dn_vanilla_detr_r50_300ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 250
schedule.drop_epochs = [200]

train.output_dir = "./output/dn_vanilla_detr_r50_250ep"
