"""Box regression losses on normalised boxes; only positives count.

Every loss takes :class:`~dinox.structures.MatchedPredictions` and returns (A,): one sum per prediction set.
"""

from torch import Tensor

from dinox.structures import MatchedPredictions, cxcywh_to_xyxy, exact_generalized_box_iou, generalized_box_iou


class L1Loss:
    """Sum of the absolute differences of the four cxcywh numbers."""

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        distance = (matched.boxes - matched.target_boxes).abs().sum(-1)  # (A, B, N)
        return (distance * matched.positive).sum(dim=(1, 2))


class GIoULoss:
    """Sum of 1 - generalised IoU, with the 1e-6 in its denominators that DINO's code has: small objects keep a loss
    (0.04 for one of 4 x 4 pixels in an image of 800 x 800) where the box is theirs."""

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        giou = generalized_box_iou(cxcywh_to_xyxy(matched.boxes), cxcywh_to_xyxy(matched.target_boxes))
        return ((1 - giou) * matched.positive).sum(dim=(1, 2))


class ExactGIoULoss:
    """Sum of 1 - generalised IoU, exact for objects of any size: that of Co-DETR's code, which takes it in pixels (it
    is the same in any unit)."""

    def __call__(self, matched: MatchedPredictions) -> Tensor:
        giou = exact_generalized_box_iou(cxcywh_to_xyxy(matched.boxes), cxcywh_to_xyxy(matched.target_boxes))
        return ((1 - giou) * matched.positive).sum(dim=(1, 2))
