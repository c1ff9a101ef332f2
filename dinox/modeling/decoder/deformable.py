"""Deformable decoder over anchor boxes (DINO, sections 3.4 and 3.5).

Legend: B images, N queries of all groups, L levels, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dinox.layers import MLP, DeformableAttention, FeedForward, QuerySelfAttention, sine_anchor_embedding, xavier_init
from dinox.structures import Memory, QueryGroup, build_attention_mask

Refine = Callable[[int, Tensor, Tensor], Tensor]  # (layer, states (B, N, D), anchors (B, N, 4)) -> anchors (B, N, 4)


@dataclass(frozen=True)
class DecoderOutput:
    """states: layers x (B, N, D), normed; anchors: layers x (B, N, 4), those that the layer's boxes start from."""

    states: list[Tensor]
    anchors: list[Tensor]


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the memory, feed-forward; norms after the residuals."""

    def __init__(
        self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feed_forward_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attention = QuerySelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
        self.self_attention_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = DeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, dropout=dropout
        )
        self.cross_attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim=embed_dim, hidden_dim=feed_forward_dim, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)

    def forward(
        self, states: Tensor, positions: Tensor, references: Tensor, memory: Memory, blocked: Tensor | None
    ) -> Tensor:
        """states, positions: (B, N, D); references: (B, N, L, 4); blocked: self-attention mask. Returns (B, N, D)."""
        states = self.self_attention_norm(states + self.self_attention(states, positions, blocked))
        attended = self.cross_attention(states + positions, references, memory)
        states = self.cross_attention_norm(states + attended)
        return self.feed_forward_norm(states + self.feed_forward(states))


class DeformableDecoder(nn.Module):
    """Layers that refine anchor boxes one after the other.

    look_forward: which boxes a layer's prediction starts from. "twice": the previous layer's refined boxes with their
    gradient, so that a layer also learns from the next layer's loss (DINO, equation 2); "once": the same without
    gradient (Deformable DETR).
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_levels: int,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feed_forward_dim: int = 2048,
        dropout: float = 0.0,
        look_forward: Literal["once", "twice"] = "twice",
    ):
        super().__init__()
        if look_forward not in ("once", "twice"):
            raise ValueError(f'look_forward must be "once" or "twice", got {look_forward!r}')
        self.look_forward = look_forward
        self.num_features = embed_dim // 2  # per anchor coordinate
        self.position_head = MLP(in_dim=4 * self.num_features, hidden_dim=embed_dim, out_dim=embed_dim, num_layers=2)
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)  # of every layer's output, on its way to the heads only
        xavier_init(self.position_head)

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, refine: Refine) -> DecoderOutput:
        """``refine(layer, states, anchors)`` moves anchor boxes (the box head of the layer)."""
        self._check(groups)
        blocked = build_attention_mask(groups)
        states = torch.cat([g.content for g in groups], dim=1)
        anchors = torch.cat([g.anchors for g in groups], dim=1)
        scale = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4): from the image to the padded batch
        all_states, all_anchors = [], [anchors]
        for i, layer in enumerate(self.layers):
            references = anchors[:, :, None] * scale  # (B, N, L, 4)
            states = layer(states, self._positions(anchors, references), references, memory, blocked)
            all_states.append(self.norm(states))
            if i + 1 < len(self.layers):
                refined = refine(i, states, anchors)
                anchors = refined.detach()
                all_anchors.append(refined if self.look_forward == "twice" else anchors)
        return DecoderOutput(all_states, all_anchors)

    def _positions(self, anchors: Tensor, references: Tensor) -> Tensor:
        """Positional queries (B, N, D) from the anchors.

        The authors embed them as shares of the padded batch (on level 0) rather than of the image. That is kept in
        training, where published results come from; in evaluation an image must not depend on its batch.
        """
        embedded = references[:, :, 0] if self.training else anchors
        return self.position_head(sine_anchor_embedding(embedded, self.num_features).to(anchors.dtype))

    @staticmethod
    def _check(groups: Sequence[QueryGroup]) -> None:
        for group in groups:
            if group.anchors is None or group.anchors.shape[-1] != 4:
                got = "none" if group.anchors is None else tuple(group.anchors.shape)
                raise ValueError(
                    f"the deformable decoder needs anchor boxes (B, N, 4), but those of query group {group.name!r} are "
                    f"{got}: give the group 4-d anchors, or the model another decoder"
                )
