"""Co-DINO: DINO with two auxiliary heads, quality focal loss and soft-NMS (Zong et al. 2023 and the authors' code)."""

from detectron2.config import LazyCall as L

from dinox.losses import QualityFocalLoss

from ..backbones.resnet_5scale import backbone as _backbone
from ..nms import soft_postprocess as _postprocess
from .auxiliary_heads import auxiliary_heads as _auxiliary_heads
from .auxiliary_heads import giou_cost as _giou_cost
from .auxiliary_heads import giou_loss as _giou_loss
from .auxiliary_heads import positive_atss as _positive_atss
from .auxiliary_heads import positive_roi as _positive_roi
from .dino import model

model.backbone = _backbone
model.auxiliary_heads = _auxiliary_heads
model.query_groups.update(positive_roi=_positive_roi, positive_atss=_positive_atss)
model.heads.shared = False
model.criterion.class_loss = L(QualityFocalLoss)(gamma=2.0)
model.criterion.giou_loss, model.criterion.matcher.giou_cost = _giou_loss, _giou_cost
model.postprocess = _postprocess
