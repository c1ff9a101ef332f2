"""A LazyConfig of the demo's DINO, made so small that it trains a step in a few hundredths of a second."""

from ...projects.dino.configs.dino_demo import model
from .tiny_config import dataloader, lr_multiplier, optimizer, schedule, train  # noqa: F401

model.num_queries = 12
model.embed_dim = 32
model.backbone.bottom_up.update(depth=18, width=8)
model.encoder.feed_forward_dim = 32
model.decoder.num_layers = 2

dataloader.test.mapper.augmentations.update(short_edge=64, max_size=64)
dataloader.train.mapper.augmentations.update(short_edges=[64], max_size=64)

train.matching_metrics.update(enabled=True, num_images=5)
