"""Co-Deformable-DETR without the "++": one stage, no box refinement; two auxiliary heads, ResNet-50, 12 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.auxiliary_heads import auxiliary_heads as _auxiliary_heads
from ....configs.common.models.auxiliary_heads import embedded_positive_atss as _positive_atss
from ....configs.common.models.auxiliary_heads import embedded_positive_roi as _positive_roi
from ....configs.common.models.auxiliary_heads import giou_cost as _giou_cost
from ....configs.common.models.auxiliary_heads import giou_loss as _giou_loss
from ....configs.common.models.deformable_detr import model
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.auxiliary_heads = _auxiliary_heads
model.criterion.giou_loss, model.criterion.matcher.giou_cost = _giou_loss, _giou_cost
model.query_groups.update(positive_roi=_positive_roi, positive_atss=_positive_atss)
model.query_groups.positive_roi.embedding.anchor_dim = 2
model.query_groups.positive_atss.embedding.anchor_dim = 2

optimizer.lr = 2e-4
optimizer.params.lr_factors = {"sampling_offsets|point_head": 0.1}

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/co_deformable_detr_plain_r50_12ep"
