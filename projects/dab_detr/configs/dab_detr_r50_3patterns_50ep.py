"""DAB-DETR, ResNet-50, 3 patterns, 50 epochs."""

from ....configs.common.models.patterns import anchors as _anchors
from ....configs.common.models.patterns import content as _content
from .dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.matching.update(content=_content, anchors=_anchors)

train.output_dir = "./output/dab_detr_r50_3patterns_50ep"
