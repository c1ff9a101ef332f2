"""DN-DETR with a deformable encoder only, ResNet-101, 3 patterns, 12 epochs."""

from .dn_deformable_encoder_detr_r50_3patterns_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.depth = 101

# torchvision's ResNet-101, as detectron2's tools/convert-torchvision-to-d2.py writes it; nobody hosts that file.
train.init_checkpoint = "./R-101.pkl"
train.output_dir = "./output/dn_deformable_encoder_detr_r101_3patterns_12ep"
