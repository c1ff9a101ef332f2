"""Denoising for a detector that is not made of dinox's parts.

Legend: A decoder layers, B images, N queries of the detector, Q denoising queries and those, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.losses import FocalLoss, GIoULoss, L1Loss
from dinox.modeling.queries.denoising import (
    CenterShiftAndScale,
    DenoisingQueries,
    FixedGroups,
    LabelEmbedding,
)
from dinox.structures import MATCHING, MatchedPredictions, QueryContext, QueryGroup, Targets, build_attention_mask
from dinox.utils.distributed import average_across_ranks

_WEIGHTS = {"class": 1.0, "bbox": 5.0, "giou": 2.0}  # DN-DETR's


@dataclass(frozen=True)
class DenoisedQueries:
    """What goes into the decoder, and what comes out of it again.

    content: (B, Q, D) and anchors: (B, Q, 4) normalised cxcywh, denoising queries first. blocked: (Q, Q) bool, True =
    may not attend: ``attn_mask`` of torch's ``nn.MultiheadAttention``. size: how many are denoising queries.
    """

    content: Tensor
    anchors: Tensor
    blocked: Tensor
    size: int
    targets: Targets
    target_index: Tensor

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (..., Q, C) of denoising queries, and of the detector's own."""
        return outputs[..., : self.size, :], outputs[..., self.size :, :]


class Denoising(nn.Module):
    """Puts noised objects in front of a detector's queries, and teaches the detector to restore them (DN-DETR, section
    4).

    num_groups: noised copies of every object. center_shift, scale: DN-DETR's lambda1 and lambda2, in [0, 1].
    flip_probability: its gamma. weights: of the losses "class" (focal), "bbox" (L1) and "giou".

    In training, before the decoder and after it::

        queries = denoising(labels, boxes, content, anchors)
        logits, predicted = decoder(queries.content, queries.anchors, attn_mask=queries.blocked)
        losses = denoising.losses(queries, logits, predicted)
        _, logits = queries.split(logits)  # goes on as without denoising
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        num_groups: int = 5,
        center_shift: float = 0.4,
        scale: float = 0.4,
        flip_probability: float = 0.2,
        max_queries: int = 1000,
        weights: Mapping[str, float] = _WEIGHTS,
    ):
        super().__init__()
        if set(weights) != set(_WEIGHTS):
            raise ValueError(f"weights must be given for {sorted(_WEIGHTS)}, got {sorted(weights)}")
        self.queries = DenoisingQueries(
            num_classes=num_classes,
            label_embedding=LabelEmbedding(num_classes=num_classes, embed_dim=embed_dim),
            box_noise=CenterShiftAndScale(center_shift=center_shift, scale=scale),
            groups=FixedGroups(num_groups=num_groups),
            flip_probability=flip_probability,
            max_queries=max_queries,
        )
        self.parts = {"class": FocalLoss(), "bbox": L1Loss(), "giou": GIoULoss()}
        self.weights = dict(weights)

    def forward(
        self,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        content: Tensor,
        anchors: Tensor,
        generator: torch.Generator | None = None,
    ) -> DenoisedQueries:
        """labels: B tensors (M_b,) int64; boxes: B tensors (M_b, 4), normalised cxcywh. content (B, N, D) and anchors
        (B, N, 4) normalised cxcywh: the detector's own queries, which see nothing of the others.
        """
        targets = Targets.from_lists(labels, boxes)
        noised = self.queries(QueryContext(targets=targets, generator=generator))
        groups = [noised, QueryGroup(MATCHING, content, anchors)]
        return DenoisedQueries(
            content=torch.cat([group.content for group in groups], dim=1),
            anchors=torch.cat([group.anchors for group in groups], dim=1),
            blocked=build_attention_mask(groups),
            size=noised.size,
            targets=targets,
            target_index=noised.target_index,
        )

    def losses(self, queries: DenoisedQueries, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """logits (A, B, Q, K), before the sigmoid, and boxes (A, B, Q, 4), normalised cxcywh, of all queries and
        decoder layers; or (B, Q, ...) of one. Returns ``loss_class_dn``, ``loss_bbox_dn``, ``loss_giou_dn``, weighted
        and summed over layers; zeros without objects.
        """
        logits, boxes = (
            each if each.dim() == 4 else each[None] for each in (queries.split(logits)[0], queries.split(boxes)[0])
        )
        index = queries.target_index.expand(len(logits), -1, -1)
        matched = MatchedPredictions.pair(logits, boxes, index, queries.targets)
        positives = average_across_ranks(matched.positive[0].sum().to(boxes)).clamp(min=1)
        return {
            f"loss_{name}_dn": self.weights[name] * part(matched).sum() / positives for name, part in self.parts.items()
        }
