"""Group-DAB-DETR, ResNet-50 with dilated res5 (DC5), 12 epochs: 11 groups of 300 queries, of which one detects."""

from ....configs.common.models.group_detr import group_weights as _group_weights
from ....configs.common.models.group_detr import other_groups as _other_groups
from ...dab_detr.configs.dab_detr_r50_dc5_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.other_groups = _other_groups
model.criterion.group_weights.update(_group_weights)

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/group_dab_detr_r50_dc5_12ep"
