"""DETR, ResNet-50, 500 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.detr import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

schedule.epochs = 500
schedule.drop_epochs = [400]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/detr_r50_500ep"
