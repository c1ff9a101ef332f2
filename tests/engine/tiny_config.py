"""A LazyConfig of TinyDetector on eight images of the embedded dataset."""

import os

from detectron2.config import LazyCall as L

from dinox.data import register_shapes
from tests.engine.tiny import TinyDetector

from ...configs.common.data.shapes import dataloader
from ...configs.common.optimizer import optimizer  # noqa: F401
from ...configs.common.schedule import lr_multiplier, schedule  # noqa: F401
from ...configs.common.train import train

for seed, name in enumerate(("dinox_tiny_train", "dinox_tiny_val")):
    register_shapes(name, seed=100 + seed, num_images=8, size=96, root=os.environ["DINOX_TEST_DATASETS"])

dataloader.train.dataset.names = "dinox_tiny_train"
dataloader.test.dataset.names = "dinox_tiny_val"

model = L(TinyDetector)(num_classes=6)

schedule.update(epochs=3, drop_epochs=[2], images_per_epoch=8)  # 6 iterations of 4 images
train.update(device="cpu", seed=1, log_period=1)
