"""DN-DETR with a deformable encoder only, ResNet-50, 3 patterns, 50 epochs: "DN-Deformable-DETR" of the tables."""

from detectron2.config import LazyCall as L

from dinox.modeling import UnknownLabelContent

from ....configs.common.models.patterns import anchors as _anchors
from ....configs.common.models.patterns import content as _content
from .dn_deformable_encoder_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

_content.base = L(UnknownLabelContent)()
model.query_groups.matching.update(content=_content, anchors=_anchors)

train.output_dir = "./output/dn_deformable_encoder_detr_r50_3patterns_50ep"
