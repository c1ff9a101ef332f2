"""Centerness, and the losses of heads that have it.

Legend: B images, P anchors of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.losses import sigmoid_focal_loss
from dinox.modeling.auxiliary.branches import DensePredictions
from dinox.modeling.auxiliary.targets import DenseTargets, at_least
from dinox.structures import generalized_box_iou, side_distances


def centerness(distances: Tensor) -> Tensor:
    """(..., 4) distances to the left, top, right and bottom side -> (...), 1 in the middle of the box (FCOS, equation
    3); 0 outside of it."""
    left, top, right, bottom = distances.clamp(min=0).unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt().nan_to_num()


def centerness_losses(
    predictions: DensePredictions,
    targets: DenseTargets,
    *,
    boxes: Tensor,
    centers: Tensor,
    counted: Tensor,
    num_positives: Tensor,
    least_centerness: float,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """Focal loss of classes, GIoU of boxes weighted by their centerness, and binary cross-entropy of that.

    Args:
        boxes: (B, P, 4) absolute xyxy, as predicted.
        centers: (P, 2) of anchors or points.
        counted: (B, P) bool, where classes are learned.
        num_positives: scalar, what classes and centerness are divided by.
        least_centerness: of what GIoU is divided by, the sum of the centerness of positives.
        weights: by loss: "class", "giou", "centerness".
    """
    wanted = centerness(side_distances(centers, targets.boxes)) * targets.positive  # (B, P)
    class_loss = sigmoid_focal_loss(predictions.logits, targets.one_hot_labels(predictions.logits))  # (B, P, K)
    giou_loss = (1 - generalized_box_iou(boxes, targets.boxes)) * wanted
    quality_loss = F.binary_cross_entropy_with_logits(predictions.quality, wanted, reduction="none")
    losses = {
        "class": (class_loss * counted[..., None]).sum() / num_positives,
        "giou": giou_loss.sum() / at_least(least_centerness, wanted.sum()),
        "centerness": (quality_loss * targets.positive).sum() / num_positives,
    }
    return {name: weights[name] * loss for name, loss in losses.items()}
