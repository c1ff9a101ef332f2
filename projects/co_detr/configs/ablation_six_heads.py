"""Six auxiliary heads (table 7): Faster R-CNN, ATSS, PAA, RetinaNet, FCOS and GFL. Fewer of them by overrides."""

from ....configs.common.models.one_stage_heads import embedded_positives as _positives
from ....configs.common.models.one_stage_heads import heads as _heads
from .co_deformable_detr_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.auxiliary_heads.update(_heads)
model.query_groups.update(_positives)

train.output_dir = "./output/co_detr_ablation_six_heads"
