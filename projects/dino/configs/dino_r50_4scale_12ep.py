"""DINO, ResNet-50, 4 scales, 12 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.dino import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dino_r50_4scale_12ep"
