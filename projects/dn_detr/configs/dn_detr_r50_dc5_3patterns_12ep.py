"""DN-DETR, ResNet-50 with dilated res5 (DC5), 3 patterns, 12 epochs."""

from detectron2.config import LazyCall as L

from dinox.modeling import UnknownLabelContent

from ....configs.common.models.patterns import anchors as _anchors
from ....configs.common.models.patterns import content as _content
from .dn_detr_r50_dc5_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

_content.base = L(UnknownLabelContent)()
model.query_groups.matching.update(content=_content, anchors=_anchors)

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/dn_detr_r50_dc5_3patterns_12ep"
