"""A small DN-Deformable-DETR that learns with known objects on the embedded dataset, in minutes on a CPU.

Half of the six classes are known: their objects are denoising queries only, seen by the matching queries, which learn
the other half.
"""

from detectron2.config import LazyCall as L

from dinox.data import split_classes
from dinox.modeling import FullVisibility, SplitByClass

from ....configs.common.data.shapes import dataloader
from ....configs.common.models.dab_deformable_detr import model
from ....configs.common.models.denoising import denoising as _denoising
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.num_classes = 6
model.num_queries = 60
model.embed_dim = 128
model.encoder.update(num_layers=1, num_heads=4, feed_forward_dim=256)
model.decoder.num_layers = 3
model.backbone.bottom_up.update(depth=18, width=32, norm="BN", freeze_at=0)
model.postprocess.num_detections = 100

model.query_groups.denoising = _denoising
model.query_groups.denoising.groups.num_groups = 1
model.query_groups.matching.content.indicator = True
model.query_groups.visibility = L(FullVisibility)()
model.query_groups.split = L(SplitByClass)(num_classes="${...num_classes}", **split_classes(6, known_share=0.5, seed=0))

dataloader.evaluator.classes = "${model.query_groups.split.unknown}"
dataloader.test.mapper.known_objects = None

optimizer.params.backbone_lr_factor = 1.0
optimizer.lr = 5e-4

schedule.update(epochs=4, drop_epochs=[3.2], images_per_epoch=2000)  # 2000 steps of 4 images

train.output_dir = "./output/known_objects_shapes"
train.eval_period = 0
train.checkpointer.period = 500
train.seed = 1
train.log_period = 50
