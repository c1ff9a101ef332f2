"""ATSS (Zhang et al. 2020) as an auxiliary head (Co-DETR, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.losses import sigmoid_focal_loss
from dinox.matching import assign_atss
from dinox.modeling.auxiliary.anchors import Anchors, apply_deltas, place_anchors, square_anchor
from dinox.modeling.auxiliary.branches import DenseBranches, DensePredictions, LevelScales, check_pyramid
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import (
    DenseTargets,
    at_least_one,
    centerness,
    find_targets,
    samples_of,
)
from dinox.structures import HeadOutput, HeadPyramid, generalized_box_iou, side_distances

DELTA_STDS = (0.1, 0.1, 0.2, 0.2)


class ATSSHead(nn.Module):
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
        super().__init__()
        self.branches = DenseBranches(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_convs=num_convs,
            quality_channels=1,
            level_scales=LevelScales(num_levels=num_levels),
        )
        self.num_levels, self.top_k = num_levels, top_k
        self.class_weight, self.giou_weight, self.centerness_weight = class_weight, giou_weight, centerness_weight
        self.detections = detections or DenseDetections()

    def forward(self, pyramid: HeadPyramid, instances: Sequence[Instances]) -> HeadOutput:
        """instances: ``gt_boxes`` (absolute xyxy in the frame of the image without padding) and ``gt_classes``."""
        anchors = self.place_anchors(pyramid)
        targets = find_targets(anchors, instances, lambda image, objects: self._assign(anchors, image, objects))
        losses = self.losses(self.branches(pyramid), anchors, targets)
        return HeadOutput(losses, samples_of(pyramid, anchors, targets))

    def place_anchors(self, pyramid: HeadPyramid) -> Anchors:
        check_pyramid(pyramid, self.num_levels, type(self).__name__)
        return place_anchors(pyramid, square_anchor())

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Padding learns nothing. Class and centerness are means over positives, GIoU over their centerness."""
        num_positives = targets.num_positives()
        wanted = centerness(side_distances(anchors.centers, targets.boxes)) * targets.positive  # (B, P)
        class_loss = sigmoid_focal_loss(predictions.logits, targets.one_hot_labels(predictions.logits))
        boxes = apply_deltas(anchors.boxes, predictions.boxes, DELTA_STDS)
        giou_loss = (1 - generalized_box_iou(boxes, targets.boxes)) * wanted
        quality_loss = F.binary_cross_entropy_with_logits(predictions.quality, wanted, reduction="none")
        return {
            "class": self.class_weight * (class_loss * targets.counted[..., None]).sum() / num_positives,
            "giou": self.giou_weight * giou_loss.sum() / at_least_one(wanted.sum()),
            "centerness": self.centerness_weight * (quality_loss * targets.positive).sum() / num_positives,
        }

    @torch.no_grad()
    def detect(self, pyramid: HeadPyramid) -> list[Instances]:
        """``pred_boxes`` (absolute xyxy), ``scores`` and ``pred_classes`` of every image."""
        anchors, predictions = self.place_anchors(pyramid), self.branches(pyramid)
        return self.detections(
            pyramid,
            anchors,
            probability=predictions.logits.sigmoid(),
            boxes=apply_deltas(anchors.boxes, predictions.boxes, DELTA_STDS),
            quality=predictions.quality.sigmoid(),
        )

    def _assign(self, anchors: Anchors, image: int, objects: Tensor) -> Tensor:
        on_image = anchors.boxes[anchors.valid_index[image]]
        return assign_atss(on_image, anchors.valid_sizes[image], objects, top_k=self.top_k)
