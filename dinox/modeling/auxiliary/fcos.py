"""FCOS (Tian et al. 2019) as an auxiliary head (Co-DETR, section 3.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.matching import assign_fcos
from dinox.modeling.auxiliary.anchors import Anchors, apply_distances
from dinox.modeling.auxiliary.branches import DensePredictions
from dinox.modeling.auxiliary.centerness import centerness_losses
from dinox.modeling.auxiliary.dense import SquareAnchorHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets, at_least

_STRIDES_IN_RANGE = 8  # up to 64 pixels on the level of stride 8, 128 on that of 16, ...
_LEAST_CENTERNESS = 1e-6  # a normaliser


class FCOSHead(SquareAnchorHead):
    """A point in the middle of every cell predicts the distances to the sides of its object, in strides.

    It has the later improvements of the authors' code: centre sampling, distances in strides, centerness from the tower
    for boxes, GIoU. Losses: ``class`` (focal), ``giou`` (weighted by centerness) and ``centerness``. To the rest of
    Co-DETR a point is a square of 8 strides around itself.

    Args:
        embed_dim: channels of the pyramid.
        num_levels: of the pyramid.
        num_convs: of each tower (Co-DETR: 1; FCOS: 4).
        center_radius: of centre sampling, in strides.
        detections: for :meth:`detect`; None: its defaults.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        num_convs: int = 1,
        center_radius: float = 1.5,
        class_weight: float = 1.0,
        giou_weight: float = 1.0,
        centerness_weight: float = 1.0,
        detections: DenseDetections | None = None,
    ):
        super().__init__(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_levels=num_levels,
            num_convs=num_convs,
            anchor_offset=0.5,
            detections=detections,
        )
        self.center_radius = center_radius
        self.weights = {"class": class_weight, "giou": giou_weight, "centerness": centerness_weight}

    def assign(
        self, anchors: Anchors, predictions: DensePredictions, image: int, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        index = anchors.valid_index[image]
        ranges = zip(*size_ranges(anchors.level_strides))
        ranges = torch.stack([anchors.per_level(limits) for limits in ranges], dim=1)  # (P, 2)
        points, strides = anchors.centers[index], anchors.strides[index]
        return assign_fcos(points, strides, ranges[index], boxes, center_radius=self.center_radius)

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Class and centerness are means over positives, GIoU over their centerness. Points in padding are background
        like others, as in mmdetection."""
        return centerness_losses(
            predictions,
            targets,
            boxes=self.decode(anchors, predictions),
            centers=anchors.centers,
            counted=torch.ones_like(targets.counted),
            num_positives=at_least(1, targets.positive.sum().float()),
            least_centerness=_LEAST_CENTERNESS,
            weights=self.weights,
        )

    def decode(self, anchors: Anchors, predictions: DensePredictions) -> Tensor:
        return apply_distances(anchors.centers, F.relu(predictions.boxes) * anchors.strides[:, None])


def size_ranges(strides: Sequence[int]) -> list[tuple[float, float]]:
    """Per level the least and the greatest distance to the farthest side, in pixels: FCOS's (-1, 64), (64, 128), ...,
    (512, inf) for strides 8 to 128, and their like for others."""
    limits = [-1.0, *(float(_STRIDES_IN_RANGE * stride) for stride in strides[:-1]), math.inf]
    return list(itertools.pairwise(limits))
