"""What the model predicts, and predictions paired with their targets.

Legend: A prediction sets of one group (decoder layers), B images, N queries, K classes, M targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.structures.queries import MATCHING
from dinox.structures.targets import Targets, TargetView

BACKGROUND = -1  # in target_index: this prediction has no object
BEFORE_NMS = "instances_before_nms"
"""Beside "instances" in a model's outputs: the detections before suppression, where the post-processing has one."""


@dataclass(frozen=True)
class RawPredictions:
    """Predictions of the matching group before post-processing.

    logits: (layers, B, N, K). boxes: (layers, B, N, 4) normalised cxcywh.
    encoder_logits (B, N, K), encoder_boxes (B, N, 4): of the proposals that the encoder's loss sees (the selected ones,
    or all tokens); None without query selection.
    padding_mask: (B, N) bool, True = no query (an image with fewer tokens than queries); None: all are queries.
    """

    logits: Tensor
    boxes: Tensor
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None
    padding_mask: Tensor | None = None


@dataclass(frozen=True)
class PredictionSet:
    """The predictions of one query group (or of the encoder) as the criterion sees them.

    name: the group's name, or "encoder". logits: (A, B, N, K). boxes: (A, B, N, 4) normalised cxcywh.
    target_index: (B, N) int64 known by construction (-1 = background), or None: the matcher decides.
    repeats, target_view, subgroup_size, batch_positives: see :class:`~dinox.structures.queries.QueryGroup`; where the
    matcher decides, it matches every sub-group by itself.
    padding_mask: (B, N) bool, True = no query: no loss sees it; None: all are queries.
    """

    name: str
    logits: Tensor
    boxes: Tensor
    target_index: Tensor | None = None
    repeats: int = 1
    target_view: TargetView | None = None
    subgroup_size: int | None = None
    padding_mask: Tensor | None = None
    batch_positives: int | None = None


@dataclass(frozen=True)
class MatchedPredictions:
    """Predictions with their assigned targets: the one argument of every loss part.

    logits: (A, B, N, K). boxes: (A, B, N, 4) normalised cxcywh.
    positive: (A, B, N) bool. labels: (A, B, N) int64, K where background.
    target_boxes: (A, B, N, 4) normalised cxcywh; equal to the prediction (detached) where background, so that every
    distance is finite and zero there.
    targets: all objects that these predictions were assigned from. group: whose predictions these are.
    padding_mask: (B, N) bool, True = no query at all, which losses leave out; None: all are queries. Such a slot is
    background, its logits are as low as they can be, and its box is empty: sigmoid losses are exactly 0 there, whatever
    they weigh.
    batch_positives: of the whole batch (``targets.batch``), in each prediction set; None: nobody knows.
    """

    logits: Tensor
    boxes: Tensor
    positive: Tensor
    labels: Tensor
    target_boxes: Tensor
    targets: Targets
    group: str = MATCHING
    padding_mask: Tensor | None = None
    batch_positives: int | None = None

    @classmethod
    def pair(
        cls,
        logits: Tensor,
        boxes: Tensor,
        target_index: Tensor,
        targets: Targets,
        *,
        group: str = MATCHING,
        padding_mask: Tensor | None = None,
        batch_positives: int | None = None,
    ) -> MatchedPredictions:
        """target_index: (A, B, N) int64 into the targets of the same image, -1 = background. padding_mask: (B, N)."""
        if padding_mask is not None:
            target_index = target_index.masked_fill(padding_mask, BACKGROUND)
            logits = logits.masked_fill(padding_mask[..., None], torch.finfo(logits.dtype).min)
            boxes = boxes.masked_fill(padding_mask[..., None], 0.0)
        positive = target_index != BACKGROUND
        index = target_index.clamp(min=0).flatten(2)  # (A, B, N)
        images = torch.arange(index.shape[1], device=index.device)[None, :, None]
        labels = torch.where(positive, targets.labels[images, index], logits.shape[-1])
        target_boxes = torch.where(positive[..., None], targets.boxes[images, index].to(boxes), boxes.detach())
        return cls(logits, boxes, positive, labels, target_boxes, targets, group, padding_mask, batch_positives)

    def one_hot_labels(self) -> Tensor:
        """(A, B, N, K) float, all zero where background."""
        classes = torch.arange(self.logits.shape[-1], device=self.labels.device)
        return (self.labels[..., None] == classes).to(self.logits)
