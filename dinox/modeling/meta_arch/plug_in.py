"""Denoising for a detector that is not made of dinox's parts.

Legend: A decoder layers, B images, N queries of the detector, Q denoising queries and those, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.losses import FocalLoss, GIoULoss, L1Loss
from dinox.modeling.criterion import Criterion
from dinox.modeling.queries import CenterShiftAndScale, DenoisingQueries, FixedGroups, LabelEmbedding
from dinox.structures import MATCHING, PredictionSet, QueryContext, QueryGroup, Targets, build_attention_mask

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
        self.queries = DenoisingQueries(
            num_classes=num_classes,
            label_embedding=LabelEmbedding(num_classes=num_classes, embed_dim=embed_dim),
            box_noise=CenterShiftAndScale(center_shift=center_shift, scale=scale),
            groups=FixedGroups(num_groups=num_groups),
            flip_probability=flip_probability,
            max_queries=max_queries,
        )
        # Targets are known by construction: there is nothing to match.
        self.criterion = Criterion(
            matcher=None, class_loss=FocalLoss(), bbox_loss=L1Loss(), giou_loss=GIoULoss(), weights=weights
        )

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

        Raises ValueError: labels outside of the classes, boxes outside of [0, 1], numbers that do not fit.
        """
        self._check(labels, boxes, content)
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
        decoder layers; or (B, Q, ...) of one. Returns ``loss_class_dn``, ``loss_bbox_dn`` and ``loss_giou_dn`` of the
        last layer, ``loss_class_dn_0`` ... of the earlier ones, weighted; zeros without objects.
        """
        logits, boxes = (
            each if each.dim() == 4 else each[None] for each in (queries.split(logits)[0], queries.split(boxes)[0])
        )
        predictions = PredictionSet("denoising", logits, boxes, queries.target_index)
        return self.criterion([predictions], queries.targets)

    def _check(self, labels: Sequence[Tensor], boxes: Sequence[Tensor], content: Tensor) -> None:
        if not len(labels) == len(boxes) == len(content):
            raise ValueError(
                f"expected labels and boxes of each of the {len(content)} images, got {len(labels)} and {len(boxes)}"
            )
        for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
            if box.shape != (len(label), 4):
                raise ValueError(f"boxes[{image}]: expected shape ({len(label)}, 4), got {tuple(box.shape)}")
            outside = (label < 0) | (label >= self.queries.num_classes)
            if outside.any():
                wrong = int(label[outside][0])
                raise ValueError(f"labels[{image}]: expected 0 <= label < {self.queries.num_classes}, got {wrong}")
            if not ((box >= 0) & (box <= 1)).all():  # NaN is neither
                raise ValueError(
                    f"boxes[{image}]: expected (centre x, centre y, width, height) as shares of the image, in [0, 1], "
                    f"got values from {float(box.min())} to {float(box.max())}: divide pixels by the image's size"
                )
