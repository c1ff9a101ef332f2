"""DN-DETR, ResNet-50 with dilated res5 (DC5), 3 patterns, 12 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.dn_detr_3patterns import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.backbone.bottom_up.res5_dilation = 2

schedule.epochs = 12
schedule.drop_epochs = [11]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dn_detr_r50_dc5_3patterns_12ep"
