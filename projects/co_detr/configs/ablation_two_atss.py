"""Two auxiliary heads of one kind, ATSS (section 4.4)."""

from copy import deepcopy

from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.auxiliary_heads.update(roi=None, second=deepcopy(model.auxiliary_heads.atss))
model.query_groups.update(positive_roi=None, positive_second=deepcopy(model.query_groups.positive_atss))
model.query_groups.positive_second.head = "second"

train.output_dir = "./output/co_detr_ablation_two_atss"
