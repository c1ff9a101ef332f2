"""Co-Deformable-DETR++ with two auxiliary heads, ResNet-50, 12 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.co_deformable_detr import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/co_deformable_detr_r50_12ep"
