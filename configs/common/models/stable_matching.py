"""Stable matching, for any detector with focal loss: Stable-DINO (Liu et al. 2023, sections 2.2 and 2.3).

    model.criterion.class_loss = class_loss
    model.criterion.matcher.class_cost = class_cost
    model.criterion.weights["class"] = class_weight
    model.criterion.group_weights = group_weights  # with denoising

Denoising queries learn by ``class_loss`` too, as released; with ``focal_denoising`` in its place by the focal loss.
"""

from detectron2.config import LazyCall as L

from dinox.losses import FocalLoss, LossByGroup, PositionSupervisedLoss
from dinox.matching import PositionModulatedCost, ReleasedPositionModulatedCost

class_loss = L(PositionSupervisedLoss)(
    iou_exponent=2.0, probability_exponent=0.0, curve=None, rescale="largest_iou", alpha=0.25, gamma=2.0
)
focal_denoising = L(LossByGroup)(otherwise=class_loss, denoising=L(FocalLoss)(alpha=0.25, gamma=2.0))

class_cost = L(PositionModulatedCost)(weight=2.0, exponent=0.5)
released_class_cost = L(ReleasedPositionModulatedCost)(weight=2.0, exponent=0.5)

class_weight = 6.0  # targets below 1 make smaller losses (section 4.1, table 8)
group_weights = {"denoising": {"class": 1.0}}
