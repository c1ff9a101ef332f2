"""DAB-DETR, ResNet-50, 50 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.dab_detr import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

schedule.epochs = 50
schedule.drop_epochs = [40]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dab_detr_r50_50ep"
