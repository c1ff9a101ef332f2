"""Known-label detection: matching queries that are told which class to find (DN-DETR, section 5.7.1).

Legend: B images, N queries, D channels, C classes of an image.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dinox.modeling.queries.denoising import label_embedding_of
from dinox.structures import ANY_CLASS, KnownClasses, QueryContext, QueryGroup


class KnownLabelQueries(nn.Module):
    """One copy of the matching queries for every class that is in the image. Their content is the label's embedding,
    with indicator 1 where it has one, in the place of what it was (an "unknown" label, patterns). Other classes
    have a score of 0 there, and copies do not see each other.

    In training there is one copy, and its class is that of the objects that the group learns (``OneClassPerImage``).
    Queries of images without objects, or without known classes at inference, stay as they are.
    """

    def forward(self, group: QueryGroup, context: QueryContext) -> QueryGroup:
        if context.targets is not None:
            targets = context.targets
            labels = torch.where(targets.valid[:, :1], targets.labels[:, :1], ANY_CLASS)
            return dataclasses.replace(group, content=self._content(group, labels, context))
        if context.known_classes is None:
            return group
        known, size = context.known_classes, group.size
        return dataclasses.replace(
            group,
            content=self._content(group, known.labels, context),
            anchors=_tiled(group.anchors, known),
            positions=_tiled(group.positions, known),
            subgroup_size=size,
            padding_mask=self._padding_mask(group, known),
            only_class=known.labels.repeat_interleave(size, dim=1),
        )

    def _content(self, group: QueryGroup, labels: Tensor, context: QueryContext) -> Tensor:
        """labels: (B, C), -1 = any -> (B, C * N, D)."""
        embedded = label_embedding_of(self, context)(labels.clamp(min=0))[:, :, None]  # (B, C, 1, D)
        is_known = (labels != ANY_CLASS)[..., None, None]
        return torch.where(is_known, embedded, group.content[:, None]).flatten(1, 2)

    def _padding_mask(self, group: QueryGroup, known: KnownClasses) -> Tensor:
        """(B, C * N)."""
        padding = (~known.valid).repeat_interleave(group.size, dim=1)
        return padding if group.padding_mask is None else padding | _tiled(group.padding_mask, known)


def _tiled(values: Tensor | None, known: KnownClasses) -> Tensor | None:
    """(B, N, ...) -> (B, C * N, ...)."""
    return None if values is None else torch.cat([values] * known.labels.shape[1], dim=1)
