"""DAB-DETR with a deformable encoder only, ResNet-50, 3 patterns, 50 epochs: "DAB-Deformable-DETR" in the tables."""

from ....configs.common.backbones.resnet_4scale import backbone as _backbone
from ....configs.common.encoders.deformable import encoder as _encoder
from .dab_detr_r50_3patterns_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone
model.encoder = _encoder
model.decoder.num_levels = "${..backbone.num_levels}"

train.output_dir = "./output/dab_deformable_encoder_detr_r50_3patterns_50ep"
