"""Co-DETR's auxiliary heads on Stable-DINO, 5 scales, ResNet-50, 12 epochs: our own combination."""

from ....configs.common.models.auxiliary_heads import auxiliary_heads as _auxiliary_heads
from ....configs.common.models.auxiliary_heads import positive_atss as _positive_atss
from ....configs.common.models.auxiliary_heads import positive_roi as _positive_roi
from ...stable_dino.configs.stable_dino_r50_5scale_12ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    schedule,
    train,
)

model.auxiliary_heads = _auxiliary_heads
model.query_groups.update(positive_roi=_positive_roi, positive_atss=_positive_atss)

train.output_dir = "./output/co_stable_dino_r50_5scale_12ep"
