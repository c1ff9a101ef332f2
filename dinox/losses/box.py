"""Box regression losses on normalised boxes; only positives count.

Every loss takes :class:`~dinox.structures.MatchedPredictions` and returns (A,): one sum per prediction set.
"""

from torch import Tensor

from dinox.structures import MatchedPredictions, cxcywh_to_xyxy, generalized_box_iou


class L1Loss:
    """Sum of the absolute differences of the four cxcywh numbers."""

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        distance = (matched.boxes - matched.target_boxes).abs().sum(-1)  # (A, B, N)
        return (distance * matched.positive).sum(dim=(1, 2))


class GIoULoss:
    """Sum of 1 - generalised IoU."""

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        giou = generalized_box_iou(cxcywh_to_xyxy(matched.boxes), cxcywh_to_xyxy(matched.target_boxes))
        return ((1 - giou) * matched.positive).sum(dim=(1, 2))
