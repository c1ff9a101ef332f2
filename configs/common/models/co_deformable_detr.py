"""Co-Deformable-DETR++: Deformable DETR++ with two auxiliary heads, Faster R-CNN and ATSS (Zong et al. 2023)."""

from .auxiliary_heads import auxiliary_heads as _auxiliary_heads
from .auxiliary_heads import embedded_positive_atss as _positive_atss
from .auxiliary_heads import embedded_positive_roi as _positive_roi
from .auxiliary_heads import giou_cost as _giou_cost
from .auxiliary_heads import giou_loss as _giou_loss
from .deformable_detr_plus_plus import model

model.auxiliary_heads = _auxiliary_heads
model.query_groups.update(positive_roi=_positive_roi, positive_atss=_positive_atss)
model.criterion.giou_loss, model.criterion.matcher.giou_cost = _giou_loss, _giou_cost
