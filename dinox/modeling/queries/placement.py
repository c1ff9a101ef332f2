"""From noised labels and boxes to queries of the kind that a decoder takes.

Every placement is called as ``placement(content, boxes)``: content (B, N, D) of label embeddings, boxes (B, N, 4)
normalised cxcywh.

| detector | placement |
|---|---|
| DAB-DETR, DINO and other detectors with anchor boxes | ``AnchorBoxes`` |
| Anchor DETR | ``AnchorPoints`` |
| DETR | ``SummedEmbedding`` |
| Conditional DETR, Deformable DETR | ``EmbeddedBoxes`` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PlacedQueries:
    """content: (B, N, D). anchors: (B, N, 4), (B, N, 2) or None. positions: (B, N, D) or None."""

    content: Tensor
    anchors: Tensor | None = None
    positions: Tensor | None = None


class AnchorBoxes(nn.Module):
    """Boxes are the anchors."""

    def forward(self, content: Tensor, boxes: Tensor) -> PlacedQueries:
        return PlacedQueries(content, boxes)


class AnchorPoints(nn.Module):
    """The boxes' centres are the anchors: of the noise, center shifting alone is left (DN-DETR, section 4.7.1)."""

    def forward(self, content: Tensor, boxes: Tensor) -> PlacedQueries:
        return PlacedQueries(content, boxes[..., :2])


class SummedEmbedding(nn.Module):
    """A linear embedding of the box plus that of the label is the positional query; content starts at zero, as that of
    DETR's own queries does (DN-DETR, section 4.7.2).
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.box_embedding = nn.Linear(4, embed_dim)

    def forward(self, content: Tensor, boxes: Tensor) -> PlacedQueries:
        return PlacedQueries(torch.zeros_like(content), positions=self.box_embedding(boxes.to(content.dtype)) + content)


class EmbeddedBoxes(nn.Module):
    """For decoders that take positional queries beside anchors: those are a linear embedding of the box.

    anchor_dim: 4 if the anchors are boxes, 2 if they are points.
    """

    def __init__(self, *, embed_dim: int, anchor_dim: Literal[2, 4]):
        super().__init__()
        if anchor_dim not in (2, 4):
            raise ValueError(f"anchor_dim must be 2 (points) or 4 (boxes), got {anchor_dim}")
        self.box_embedding = nn.Linear(4, embed_dim)
        self.anchor_dim = anchor_dim

    def forward(self, content: Tensor, boxes: Tensor) -> PlacedQueries:
        return PlacedQueries(content, boxes[..., : self.anchor_dim], self.box_embedding(boxes.to(content.dtype)))
