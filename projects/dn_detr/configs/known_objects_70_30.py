"""DN-DETR that is told the objects of 70 % of COCO's classes and detects those of the other 30 %, ResNet-50, 50 epochs.

Known objects are denoising queries, without noise at inference, and every query sees every other one (section 5.7.1).
To be told those of the ground truth: ``dataloader.test.mapper.known_objects='${model.query_groups.split.known}'``.
"""

from detectron2.config import LazyCall as L

from dinox.data import split_classes
from dinox.modeling import FullVisibility, SplitByClass

from .dn_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.split = L(SplitByClass)(
    num_classes="${...num_classes}", **split_classes(80, known_share=0.7, seed=0)
)
model.query_groups.visibility = L(FullVisibility)()
model.query_groups.denoising.groups.num_groups = 1  # all see each other: copies would tell what the noise is

dataloader.evaluator.classes = "${model.query_groups.split.unknown}"
dataloader.test.mapper.known_objects = None

train.output_dir = "./output/known_objects_70_30"
