"""ATSS (Zhang et al. 2020) as an auxiliary head (Co-DETR, section 3.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dinox.losses import sigmoid_focal_loss
from dinox.matching import assign_atss
from dinox.modeling.auxiliary.anchors import Anchors, apply_deltas, square_anchor
from dinox.modeling.auxiliary.branches import DenseBranches, DensePredictions, LevelScales
from dinox.modeling.auxiliary.dense import DenseHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets, at_least, centerness
from dinox.structures import generalized_box_iou, side_distances

DELTA_STDS = (0.1, 0.1, 0.2, 0.2)


class ATSSHead(DenseHead):
    """One square anchor per cell, positives by :func:`~dinox.matching.assign_atss`, and a centerness.

    Losses: ``class`` (focal), ``giou`` (weighted by centerness) and ``centerness``; the weights are Co-DETR's, before
    its factor for auxiliary heads.

    Args:
        embed_dim: channels of the pyramid.
        num_levels: of the pyramid.
        num_convs: of each tower (Co-DETR: 1; ATSS: 4).
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
        top_k: int = 9,
        class_weight: float = 1.0,
        giou_weight: float = 2.0,
        centerness_weight: float = 1.0,
        detections: DenseDetections | None = None,
    ):
        branches = DenseBranches(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_convs=num_convs,
            quality_channels=1,
            level_scales=LevelScales(num_levels=num_levels),
        )
        super().__init__(
            branches=branches,
            num_levels=num_levels,
            cell_anchors=square_anchor(),
            detections=detections or DenseDetections(),
        )
        self.top_k = top_k
        self.class_weight, self.giou_weight, self.centerness_weight = class_weight, giou_weight, centerness_weight

    def assign(
        self, anchors: Anchors, predictions: DensePredictions, image: int, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        return assign_atss(anchors.of_image(image), anchors.valid_sizes[image], boxes, top_k=self.top_k)

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Class and centerness are means over positives, GIoU over their centerness."""
        num_positives = targets.num_positives()
        wanted = centerness(side_distances(anchors.centers, targets.boxes)) * targets.positive  # (B, P)
        class_loss = sigmoid_focal_loss(predictions.logits, targets.one_hot_labels(predictions.logits))
        giou_loss = (1 - generalized_box_iou(self.decode(anchors, predictions), targets.boxes)) * wanted
        quality_loss = F.binary_cross_entropy_with_logits(predictions.quality, wanted, reduction="none")
        return {
            "class": self.class_weight * (class_loss * targets.counted[..., None]).sum() / num_positives,
            "giou": self.giou_weight * giou_loss.sum() / at_least(1, wanted.sum()),
            "centerness": self.centerness_weight * (quality_loss * targets.positive).sum() / num_positives,
        }

    def decode(self, anchors: Anchors, predictions: DensePredictions) -> Tensor:
        return apply_deltas(anchors.boxes, predictions.boxes, DELTA_STDS)
