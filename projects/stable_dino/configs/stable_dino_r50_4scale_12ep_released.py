"""Stable-DINO as its authors released it, ResNet-50, 4 scales, 12 epochs.

It departs from the paper in three ways: the best target of an image becomes 1, the matching cost is normalised by image
and looked up by class, and the noise of negative denoising queries is that of the positives.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import SameRangeBoxNoise

from ....configs.common.models.stable_matching import released_class_cost as _class_cost
from .stable_dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.criterion.class_loss.rescale = "one"
model.criterion.matcher.class_cost = _class_cost
model.query_groups.denoising.box_noise = L(SameRangeBoxNoise)(scale=1.0)

train.output_dir = "./output/stable_dino_r50_4scale_12ep_released"
