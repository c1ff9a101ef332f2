"""DN-Deformable-DETR, ResNet-50, 50 epochs; with "++" in the paper's tables."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.dab_deformable_detr import model
from ....configs.common.models.denoising import denoising as _denoising
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.query_groups.denoising = _denoising
model.query_groups.denoising.label_embedding.unknown_class = True  # as its authors released it; nobody reads that row
model.query_groups.matching.content.indicator = True

schedule.epochs = 50
schedule.drop_epochs = [40]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dn_deformable_detr_r50_50ep"
