"""Class costs that see where the box lies: p' = p f2(s'), s' = (GIoU + 1) / 2 (Stable-DINO, equation 4).

Legend: A prediction sets, B images, N queries, K classes, M targets (padded), G = B * M targets of the whole batch.
"""

import torch
from torch import Tensor

from dinox.matching.costs import at_target_labels, corners_of_pairs, focal_cost
from dinox.structures import Targets, generalized_box_iou
from dinox.utils.ranges import check_range

_NORMALISATION_EPS = 1e-8  # beside the largest s' of an image, as the authors' code


def positional_scores(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """(GIoU + 1) / 2 in [0, 1], pairwise: boxes (..., N, 4), target_boxes (..., M, 4) normalised cxcywh, whose leading
    dimensions broadcast -> (..., N, M).
    """
    giou = generalized_box_iou(*corners_of_pairs(boxes, target_boxes))  # (..., M, N)
    return ((giou + 1) / 2).clamp(0, 1).mT


class PositionModulatedCost:
    """Focal class cost at p s'^exponent, for every pair of its own: good scores count for less where the box is off.

    weight 2 and exponent 0.5: the paper's table 9; exponent 0 is the plain ``FocalCost``.
    """

    def __init__(self, *, weight: float = 2.0, exponent: float = 0.5, alpha: float = 0.25, gamma: float = 2.0):
        check_range("exponent", exponent, 0)
        self.weight, self.exponent, self.alpha, self.gamma = weight, exponent, alpha, gamma

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        probability = at_target_labels(logits, targets).sigmoid()  # (A, B, N, M)
        modulated = probability * self.position(boxes, targets) ** self.exponent
        return self.weight * focal_cost(modulated, alpha=self.alpha, gamma=self.gamma)

    def position(self, boxes: Tensor, targets: Targets) -> Tensor:
        """s' of every pair: (A, B, N, M)."""
        return positional_scores(boxes, targets.boxes)


class ReleasedPositionModulatedCost(PositionModulatedCost):
    """The cost as the authors released it, which departs from the paper in two ways:

    * s' is divided by the largest one of the image where that is below 1, so that the best box counts in full;
    * s' belongs to a query and a *class*: of the batch's objects of a class, the last one (of any image) counts for
      all, also in the largest s' of an image, which is taken over the classes of the whole batch.
    """

    def position(self, boxes: Tensor, targets: Targets) -> Tensor:
        """s' of every pair: (A, B, N, M)."""
        labels, valid = targets.labels.flatten(), targets.valid.flatten()  # (G,)
        order = torch.arange(len(labels), device=labels.device)
        same_class = (labels[:, None] == labels) & valid  # (G, G): object, the others of its class
        last = torch.where(same_class, order, 0).amax(1)  # (G,) the object that counts for each one's class
        scores = positional_scores(boxes, targets.boxes.flatten(0, 1)[last])  # (A, B, N, G)
        largest = (scores * valid).amax(dim=(2, 3), keepdim=True)
        scores = scores * (1 / (largest + _NORMALISATION_EPS)).clamp(min=1)
        own = order.view(targets.labels.shape)[None, :, None]  # (1, B, 1, M): an image's objects among those of all
        return scores.gather(-1, own.expand(*scores.shape[:3], -1)).clamp(max=1)
