"""Two-stage Deformable DETR with the tricks of H-DETR, and without its one-to-many queries: ResNet-50, 12 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.deformable_detr_plus_plus import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"sampling_offsets": 0.1}  # as in Deformable DETR's code

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/deformable_detr_plus_plus_r50_12ep"
