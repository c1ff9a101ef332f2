"""DAB-DETR with a deformable encoder only, ResNet-50, 3 patterns, 50 epochs: "DAB-Deformable-DETR" in the tables."""

from ....configs.common.backbones.resnet_4scale import backbone as _backbone
from ....configs.common.data.coco_detr import dataloader
from ....configs.common.encoders.deformable import encoder as _encoder
from ....configs.common.models.dab_detr_3patterns import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.backbone = _backbone
model.encoder = _encoder
model.decoder.num_levels = "${..backbone.num_levels}"

schedule.epochs = 50
schedule.drop_epochs = [40]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dab_deformable_encoder_detr_r50_3patterns_50ep"
