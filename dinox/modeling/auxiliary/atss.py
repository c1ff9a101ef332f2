"""ATSS (Zhang et al. 2020) as an auxiliary head (Co-DETR, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from dinox.modeling.auxiliary.anchors import Anchors
from dinox.modeling.auxiliary.branches import DensePredictions
from dinox.modeling.auxiliary.centerness import centerness_losses
from dinox.modeling.auxiliary.dense import SquareAnchorHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets


class ATSSHead(SquareAnchorHead):
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
        super().__init__(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_levels=num_levels,
            num_convs=num_convs,
            top_k=top_k,
            detections=detections,
        )
        self.weights = {"class": class_weight, "giou": giou_weight, "centerness": centerness_weight}

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Class and centerness are means over positives, GIoU over their centerness."""
        return centerness_losses(
            predictions,
            targets,
            boxes=self.decode(anchors, predictions),
            centers=anchors.centers,
            counted=targets.counted,
            num_positives=targets.num_positives(),
            least_centerness=1,
            weights=self.weights,
        )
