"""DN-DETR that is told the objects of one half of COCO's classes and detects those of the other half, ResNet-50, 50
epochs."""

from dinox.data import split_classes

from .known_objects_70_30 import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.split.update(split_classes(80, known_share=0.5, seed=0))

train.output_dir = "./output/known_objects_50_50"
