"""H-Deformable-DETR, ResNet-50, 12 epochs: 1500 one-to-many queries beside the 300 of the base, in training."""

from ....configs.common.models.one_to_many import embedded_one_to_many as _one_to_many
from .deformable_detr_plus_plus_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.one_to_many = _one_to_many
model.query_selection.more_in_training = "${..query_groups.one_to_many.content.num_queries}"
model.criterion.group_weights.one_to_many = 1.0

train.output_dir = "./output/h_deformable_detr_r50_12ep"
