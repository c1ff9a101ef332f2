"""Objects365 (v2) for pre-training: all but the first 5,000 images of its validation set join its training set, and
those 5,000 are for validation (DINO, appendix D.2). 64 images per step."""

from dinox.data.objects365 import OBJECTS365_IMAGES_PER_EPOCH

from .coco_detr import dataloader

dataloader.train.dataset.names = ["objects365_train", "objects365_val_rest"]
dataloader.train.total_batch_size = 64
dataloader.test.dataset.names = "objects365_val_first5000"

images_per_epoch = OBJECTS365_IMAGES_PER_EPOCH
