"""A LazyConfig of Co-Deformable-DETR, made as small as the tiny DINO."""

from ...projects.co_detr.configs.co_deformable_detr_r50_12ep import model
from .tiny_config import dataloader, lr_multiplier, optimizer, schedule, train  # noqa: F401

model.num_classes = 6
model.num_queries = 12
model.embed_dim = 32
model.backbone.bottom_up.update(depth=18, width=8)
model.encoder.update(feed_forward_dim=32, num_layers=1)
model.decoder.num_layers = 2
model.auxiliary_heads.roi.hidden_dims = (16, 16)

dataloader.test.mapper.augmentations.update(short_edge=64, max_size=64)
dataloader.train.mapper.augmentations.update(short_edges=[64], max_size=64)
