"""DINO, ResNet-101, 4 scales, 12 epochs."""

from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.depth = 101

# torchvision's ResNet-101, as detectron2's tools/convert-torchvision-to-d2.py writes it; nobody hosts that file.
train.init_checkpoint = "./R-101.pkl"
train.output_dir = "./output/dino_r101_4scale_12ep"
