"""DN-DETR with a deformable encoder only, ResNet-50, 50 epochs: as its authors released it."""

from ....configs.common.backbones.resnet_4scale import backbone as _backbone
from ....configs.common.encoders.deformable import encoder as _encoder
from .dn_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone = _backbone
model.encoder = _encoder
model.decoder.num_levels = "${..backbone.num_levels}"
model.query_groups.denoising.groups.num_groups = 10

train.output_dir = "./output/dn_deformable_encoder_detr_r50_50ep"
