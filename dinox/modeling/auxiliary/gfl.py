"""Generalized focal loss (GFL, Li et al. 2020) as an auxiliary head (Co-DETR, section 4.4).

Legend: B images, P anchors of an image, n the greatest distance in strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinox.losses import distribution_focal_loss, quality_focal_loss
from dinox.modeling.auxiliary.anchors import Anchors, apply_distances
from dinox.modeling.auxiliary.branches import DensePredictions
from dinox.modeling.auxiliary.dense import SquareAnchorHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets, at_least
from dinox.structures import box_iou, generalized_box_iou, side_distances
from dinox.utils.ranges import check_range

_BELOW_GREATEST = 0.1  # distances stay this far below n, so that there is a whole number above them (authors' code)
_SIDES = 4


class GFLHead(SquareAnchorHead):
    """Classes score the quality of their box, and every side's distance is a distribution over whole strides.

    Positives are those of ATSS. Losses: ``class`` (quality focal), ``giou`` and ``dfl`` (distribution focal), both
    weighted by the score of the best class.

    Args:
        embed_dim: channels of the pyramid.
        num_levels: of the pyramid.
        num_convs: of each tower (Co-DETR: 1; GFL: 4).
        max_distance: n.
        top_k: candidates of an object per level.
        detections: for :meth:`detect`; None: its defaults.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        num_convs: int = 1,
        max_distance: int = 16,
        top_k: int = 9,
        class_weight: float = 1.0,
        giou_weight: float = 2.0,
        dfl_weight: float = 0.25,
        detections: DenseDetections | None = None,
    ):
        check_range("max_distance", max_distance, 1)
        super().__init__(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_levels=num_levels,
            num_convs=num_convs,
            box_channels=_SIDES * (max_distance + 1),
            quality_channels=0,
            top_k=top_k,
            detections=detections,
        )
        self.max_distance = max_distance
        self.class_weight, self.giou_weight, self.dfl_weight = class_weight, giou_weight, dfl_weight

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """The class loss is a mean over positives, those of boxes are means over their weights."""
        boxes = self.decode(anchors, predictions)  # (B, P, 4)
        weights = predictions.logits.detach().sigmoid().amax(-1) * targets.positive  # (B, P)
        normalizer = at_least(1, weights.sum())
        giou_loss = (1 - generalized_box_iou(boxes, targets.boxes)) * weights
        dfl = distribution_focal_loss(self._distributions(predictions), self._distances(anchors, targets))
        class_loss = self._class_loss(predictions, boxes.detach(), targets)
        return {
            "class": self.class_weight * (class_loss * targets.counted[..., None]).sum() / targets.num_positives(),
            "giou": self.giou_weight * giou_loss.sum() / normalizer,
            "dfl": self.dfl_weight * (dfl.mean(-1) * weights).sum() / normalizer,
        }

    def decode(self, anchors: Anchors, predictions: DensePredictions) -> Tensor:
        """Of every distribution its mean."""
        distances = torch.arange(self.max_distance + 1, device=predictions.boxes.device).to(predictions.boxes)
        # Not a matrix product, which autocast would round to half precision.
        in_strides = (self._distributions(predictions).softmax(-1) * distances).sum(-1)  # (B, P, 4)
        return apply_distances(anchors.centers, in_strides * anchors.strides[:, None])

    def _class_loss(self, predictions: DensePredictions, boxes: Tensor, targets: DenseTargets) -> Tensor:
        """(B, P, K) towards the IoU of the box, at the class of its object."""
        iou, _ = box_iou(boxes, targets.boxes)  # (B, P)
        is_class = targets.one_hot_labels(predictions.logits)
        return quality_focal_loss(predictions.logits, is_class * iou[..., None], is_class.bool())

    def _distributions(self, predictions: DensePredictions) -> Tensor:
        """(B, P, 4, n + 1) logits: left, top, right, bottom side."""
        return predictions.boxes.unflatten(-1, (_SIDES, self.max_distance + 1))

    def _distances(self, anchors: Anchors, targets: DenseTargets) -> Tensor:
        """(B, P, 4) of the object's sides in strides, as far as distributions reach."""
        in_strides = side_distances(anchors.centers, targets.boxes) / anchors.strides[:, None]
        return in_strides.clamp(0, self.max_distance - _BELOW_GREATEST)
