"""The embedded dataset "shapes", for two CPU cores: small images, 4 per step."""

from .coco_detr import dataloader

dataloader.train.dataset.names = "dinox_shapes_train"
dataloader.train.dataset.filter_empty = False  # its images without objects are there to be trained on
# One size: batches need no padding.
dataloader.train.mapper.augmentations.update(short_edges=[192], max_size=192, crop_probability=0.0)
dataloader.train.total_batch_size = 4
# Reading such images takes 2 % of a step; workers would take their time from the two cores that compute.
dataloader.train.num_workers = 0

dataloader.test.dataset.names = "dinox_shapes_val"
dataloader.test.mapper.augmentations.update(short_edge=192, max_size=192)
dataloader.test.num_workers = 0
