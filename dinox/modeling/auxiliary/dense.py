"""What one-stage heads have in common: from a pyramid and its objects to losses and samples, or to detections.

Legend: B images, P anchors of an image, M objects of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from dinox.matching import assign_atss
from dinox.modeling.auxiliary.anchors import DELTA_STDS, Anchors, apply_deltas, place_anchors, square_anchor
from dinox.modeling.auxiliary.branches import DenseBranches, DensePredictions, LevelScales, check_pyramid
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets, find_targets, samples_of
from dinox.structures import HeadOutput, HeadPyramid
from dinox.utils.ranges import check_range


class DenseHead(nn.Module):
    """Its kinds say what an anchor learns (:meth:`assign`), at which loss (:meth:`losses`), and where its box is
    (:meth:`decode`).

    Args:
        cell_anchors: (A, 4) xyxy around the origin, in strides.
        anchor_offset: of the first cell's anchors from the corner of the image, in strides.
        detections: for :meth:`detect`.
    """

    def __init__(
        self,
        *,
        branches: DenseBranches,
        num_levels: int,
        cell_anchors: Tensor,
        anchor_offset: float = 0.0,
        detections: DenseDetections,
    ):
        super().__init__()
        check_range("num_levels", num_levels, 1)
        self.branches, self.num_levels = branches, num_levels
        self.register_buffer("cell_anchors", cell_anchors, persistent=False)
        self.anchor_offset, self.detections = anchor_offset, detections

    def forward(self, pyramid: HeadPyramid, instances: Sequence[Instances]) -> HeadOutput:
        """instances: ``gt_boxes`` (absolute xyxy in the frame of the image without padding) and ``gt_classes``."""
        anchors = self.place_anchors(pyramid)
        predictions = self.branches(pyramid)
        targets = find_targets(
            anchors, instances, lambda image, boxes, labels: self.assign(anchors, predictions, image, boxes, labels)
        )
        return HeadOutput(self.losses(predictions, anchors, targets), samples_of(pyramid, anchors, targets))

    @torch.no_grad()
    def detect(self, pyramid: HeadPyramid) -> list[Instances]:
        """``pred_boxes`` (absolute xyxy), ``scores`` and ``pred_classes`` of every image, best first."""
        anchors, predictions = self.place_anchors(pyramid), self.branches(pyramid)
        probability, quality = self.scores(predictions)
        boxes = self.decode(anchors, predictions)
        return self.detections(pyramid, anchors, probability=probability, boxes=boxes, quality=quality)

    def place_anchors(self, pyramid: HeadPyramid) -> Anchors:
        check_pyramid(pyramid, self.num_levels, type(self).__name__)
        return place_anchors(pyramid, self.cell_anchors, offset=self.anchor_offset)

    def assign(
        self, anchors: Anchors, predictions: DensePredictions, image: int, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        """What the anchors on one image (not in its padding) learn of its objects: boxes (M, 4) absolute xyxy, labels
        (M,). Returns (anchors on that image,) int64: the object, -1 = background, -2 = nothing."""
        raise NotImplementedError

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Weighted and normalised scalars; they reach all predictions, whatever is positive."""
        raise NotImplementedError

    def decode(self, anchors: Anchors, predictions: DensePredictions) -> Tensor:
        """(B, P, 4) absolute xyxy of what is predicted."""
        raise NotImplementedError

    def scores(self, predictions: DensePredictions) -> tuple[Tensor, Tensor | None]:
        """(B, P, K) what detections are chosen by, and (B, P) a factor afterwards, or None."""
        quality = None if predictions.quality is None else predictions.quality.sigmoid()
        return predictions.logits.sigmoid(), quality


class SquareAnchorHead(DenseHead):
    """With one square anchor per cell, as ATSS and its relatives. Unless a head has it otherwise, anchors learn what
    ATSS assigns to them, and boxes are predicted as shifts and scales of theirs.

    Args:
        embed_dim: channels of the pyramid.
        num_levels: of the pyramid.
        num_convs: of each tower.
        box_channels: numbers per box.
        quality_channels: 1 for a head that tells the quality of its boxes, else 0.
        anchor_offset: see :class:`DenseHead`.
        top_k: candidates of an object per level.
        detections: for :meth:`detect`; None: its defaults.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        num_convs: int,
        box_channels: int = 4,
        quality_channels: int = 1,
        anchor_offset: float = 0.0,
        top_k: int = 9,
        detections: DenseDetections | None,
    ):
        branches = DenseBranches(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_convs=num_convs,
            box_channels=box_channels,
            quality_channels=quality_channels,
            level_scales=LevelScales(num_levels=num_levels),
        )
        super().__init__(
            branches=branches,
            num_levels=num_levels,
            cell_anchors=square_anchor(),
            anchor_offset=anchor_offset,
            detections=detections or DenseDetections(),
        )
        self.top_k = top_k

    def assign(
        self, anchors: Anchors, predictions: DensePredictions, image: int, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        return assign_atss(anchors.of_image(image), anchors.valid_sizes[image], boxes, top_k=self.top_k)

    def decode(self, anchors: Anchors, predictions: DensePredictions) -> Tensor:
        return apply_deltas(anchors.boxes, predictions.boxes, DELTA_STDS)
