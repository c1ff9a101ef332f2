"""A small DINO that learns the embedded dataset from scratch in minutes on a CPU."""

from detectron2.data import MetadataCatalog

from ....configs.common.data.shapes import dataloader
from ....configs.common.models.dino import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.num_classes = len(MetadataCatalog.get(dataloader.train.dataset.names).thing_classes)
model.num_queries = 60
model.embed_dim = 128
model.encoder.num_layers = 1
model.encoder.num_heads = 4
model.encoder.feed_forward_dim = 256
model.decoder.num_layers = 3
model.query_groups.denoising.groups.num_queries = 40
model.postprocess.num_detections = 100

# From scratch: norms and all stages learn, at the same rate as the rest.
model.backbone.bottom_up.update(depth=18, width=32, norm="BN", freeze_at=0)
optimizer.params.backbone_lr_factor = 1.0
optimizer.lr = 5e-4

schedule.update(epochs=3.2, drop_epochs=[2.6], images_per_epoch=2000)  # 1600 steps of 4 images

train.output_dir = "./output/demo"
train.eval_period = 0
train.checkpointer.period = 400
train.seed = 1
train.log_period = 50
