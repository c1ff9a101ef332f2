"""Co-DINO with two auxiliary heads, ResNet-50, 5 scales, 12 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.co_dino import model
from ....configs.common.nms import evaluator as _evaluator
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

dataloader.evaluator = _evaluator
optimizer.lr = 2e-4

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/co_dino_r50_5scale_12ep"
