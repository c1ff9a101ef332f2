"""Co-DAB-DETR on C5 with two auxiliary heads, ResNet-50, 36 epochs."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.models.dab_detr import model
from ....configs.common.models.single_scale_heads import auxiliary_heads as _auxiliary_heads
from ....configs.common.models.single_scale_heads import giou_cost as _giou_cost
from ....configs.common.models.single_scale_heads import giou_loss as _giou_loss
from ....configs.common.models.single_scale_heads import positive_atss as _positive_atss
from ....configs.common.models.single_scale_heads import positive_roi as _positive_roi
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

model.auxiliary_heads = _auxiliary_heads
model.criterion.giou_loss, model.criterion.matcher.giou_cost = _giou_loss, _giou_cost
model.query_groups.update(positive_roi=_positive_roi, positive_atss=_positive_atss)

schedule.epochs = 36
schedule.drop_epochs = [30]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/co_dab_detr_r50_36ep"
