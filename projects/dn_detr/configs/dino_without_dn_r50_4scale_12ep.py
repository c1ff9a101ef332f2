"""DINO without denoising, ResNet-50, 12 epochs."""

from .dino_dn_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.denoising = None

train.output_dir = "./output/dino_without_dn_r50_4scale_12ep"
