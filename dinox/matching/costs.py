"""Matching costs: each part maps predictions and targets to a matrix of pair costs; lower is better.

Legend: A prediction sets, B images, N queries, K classes, M targets (padded; padded columns are never used).
Every cost is called as ``cost(logits, boxes, targets)`` with logits (A, B, N, K), boxes (A, B, N, 4) normalised
cxcywh, and returns (A, B, N, M), its weight included.

In memory the costs here lie object by object, as (A, B, M, N): what is broadcast over pairs then runs along many
queries, not along few objects, which is 2 to 3 times as fast. Other layouts are as right.
"""

import torch
from torch import Tensor

from dinox.structures import Targets, cxcywh_to_xyxy, exact_generalized_box_iou, generalized_box_iou

_LOG_EPS = 1e-8


def focal_cost(probability: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of calling a class present, less that of calling it absent; elementwise (Deformable DETR's code)."""
    # In place: costs are large enough that fresh memory for every step would take longer than the steps.
    complement = 1 - probability
    present = (complement**gamma).mul_(alpha).mul_((probability + _LOG_EPS).log_().neg_())
    absent = (probability**gamma).mul_(1 - alpha).mul_(complement.add_(_LOG_EPS).log_().neg_())
    return present.sub_(absent)


def at_target_labels(values: Tensor, targets: Targets) -> Tensor:
    """Pick the target's class: values (A, B, N, K) -> (A, B, N, M), new memory."""
    labels = targets.labels[None, :, None].expand(*values.shape[:3], -1)  # (A, B, N, M)
    return values.gather(-1, labels).mT.contiguous().mT


def corners_of_pairs(boxes: Tensor, target_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """boxes (..., N, 4), target_boxes (..., M, 4) cxcywh -> (..., 1, N, 4), (..., M, 1, 4) xyxy, to be broadcast to
    (..., M, N). Each corner's coordinates lie side by side in memory.
    """
    corners = cxcywh_to_xyxy(boxes).mT.contiguous().mT
    return corners[..., None, :, :], cxcywh_to_xyxy(target_boxes.to(boxes))[..., None, :]


class FocalCost:
    """Class cost of the DINO family: weight 2, alpha .25, gamma 2 (paper table 8: set cost class)."""

    def __init__(self, *, weight: float = 2.0, alpha: float = 0.25, gamma: float = 2.0):
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        probability = at_target_labels(logits, targets).sigmoid_()
        return focal_cost(probability, alpha=self.alpha, gamma=self.gamma).mul_(self.weight)


class SoftmaxCost:
    """Class cost of DETR: minus the probability of the object's class, weight 1; the last logit is "no object"."""

    def __init__(self, *, weight: float = 1.0):
        self.weight = weight

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        return at_target_labels(logits.softmax(-1), targets).mul_(-self.weight)


class L1Cost:
    """L1 distance of normalised cxcywh boxes: weight 5 (paper table 8: set cost bbox)."""

    def __init__(self, *, weight: float = 5.0):
        self.weight = weight

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        wanted = targets.boxes.to(boxes).expand(len(boxes), -1, -1, -1)  # (A, B, M, 4)
        return torch.cdist(wanted, boxes, p=1).mul_(self.weight).mT


class GIoUCost:
    """Negative generalised IoU: weight 2 (paper table 8: set cost giou). With the 1e-6 in its denominators that DINO's
    code has."""

    def __init__(self, *, weight: float = 2.0):
        self.weight = weight

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        return generalized_box_iou(*corners_of_pairs(boxes, targets.boxes)).mul_(-self.weight).mT


class ExactGIoUCost:
    """Negative generalised IoU, exact for objects of any size, weight 2: that of Co-DETR's code, which takes it in
    pixels (it is the same in any unit)."""

    def __init__(self, *, weight: float = 2.0):
        self.weight = weight

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        return exact_generalized_box_iou(*corners_of_pairs(boxes, targets.boxes)).mul_(-self.weight).mT
