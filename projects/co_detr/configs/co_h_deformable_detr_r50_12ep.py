"""Co-DETR's auxiliary heads and H-DETR's one-to-many queries on Deformable DETR++, ResNet-50, 12 epochs."""

from ....configs.common.models.one_to_many import embedded_one_to_many as _one_to_many
from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.one_to_many = _one_to_many
model.query_selection.more_in_training = "${..query_groups.one_to_many.content.num_queries}"
model.criterion.group_weights.one_to_many = 1.0

train.output_dir = "./output/co_h_deformable_detr_r50_12ep"
