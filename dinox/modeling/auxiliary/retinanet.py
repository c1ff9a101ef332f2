"""RetinaNet (Lin et al. 2017) as an auxiliary head (Co-DETR, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from dinox.losses import sigmoid_focal_loss
from dinox.matching import assign_max_iou
from dinox.modeling.auxiliary.anchors import Anchors, apply_deltas, octave_anchors
from dinox.modeling.auxiliary.branches import DenseBranches, DensePredictions, Norm
from dinox.modeling.auxiliary.dense import DenseHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets
from dinox.structures import generalized_box_iou

_DELTA_STDS = (1.0, 1.0, 1.0, 1.0)
_NMS_IOU = 0.5


class RetinaNetHead(DenseHead):
    """Nine anchors per cell, positives by IoU; in Co-DETR with GIoU of the predicted boxes in place of smooth L1.

    Losses: ``class`` (focal) and ``giou``. Co-DETR publishes no weight of the latter; 2 is that of its ATSS head.

    Args:
        embed_dim: channels of the pyramid.
        num_levels: of the pyramid.
        num_convs: of each tower (Co-DETR: 1; RetinaNet: 4).
        norm: of the towers; RetinaNet has none.
        positive_iou, negative_iou, least_iou: see :func:`~dinox.matching.assign_max_iou`.
        detections: for :meth:`detect`; None: its defaults, but for RetinaNet's NMS at an IoU of .5.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        num_convs: int = 1,
        norm: Norm = "",
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        least_iou: float | None = 0.0,
        class_weight: float = 1.0,
        giou_weight: float = 2.0,
        detections: DenseDetections | None = None,
    ):
        cell_anchors = octave_anchors()
        branches = DenseBranches(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_convs=num_convs,
            num_anchors=len(cell_anchors),
            level_scales=None,
            norm=norm,
        )
        super().__init__(
            branches=branches,
            num_levels=num_levels,
            cell_anchors=cell_anchors,
            detections=detections or DenseDetections(nms_threshold=_NMS_IOU),
        )
        self.positive_iou, self.negative_iou, self.least_iou = positive_iou, negative_iou, least_iou
        self.class_weight, self.giou_weight = class_weight, giou_weight

    def assign(
        self, anchors: Anchors, predictions: DensePredictions, image: int, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        return assign_max_iou(
            anchors.of_image(image),
            boxes,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            least_iou=self.least_iou,
        )

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Means over positives."""
        num_positives = targets.num_positives()
        class_loss = sigmoid_focal_loss(predictions.logits, targets.one_hot_labels(predictions.logits))
        giou_loss = 1 - generalized_box_iou(self.decode(anchors, predictions), targets.boxes)
        return {
            "class": self.class_weight * (class_loss * targets.counted[..., None]).sum() / num_positives,
            "giou": self.giou_weight * (giou_loss * targets.positive).sum() / num_positives,
        }

    def decode(self, anchors: Anchors, predictions: DensePredictions) -> Tensor:
        return apply_deltas(anchors.boxes, predictions.boxes, _DELTA_STDS)
