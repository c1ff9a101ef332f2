"""Decoders whose queries attend to all tokens of the memory, without a place of their own (DETR) or around anchor
points by separate attention along rows and columns (Anchor DETR).

Legend: B images, N queries of all groups, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dinox.layers import (
    MLP,
    Activation,
    DecoderLayer,
    MemoryAttention,
    QuerySelfAttention,
    RowColumnAttention,
    sine_anchor_embedding,
    xavier_init,
)
from dinox.modeling.decoder.layers import (
    DecoderOutput,
    Refine,
    check_groups,
    decode_layer_by_layer,
    join_anchors,
    join_positions,
)
from dinox.structures import Memory, QueryGroup, build_attention_mask


class DenseDecoder(nn.Module):
    """DETR's decoder: positional queries are given, boxes come from the states alone.

    mask_memory: padding of the memory is never attended to.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_layers: int = 6,
        num_heads: int = 8,
        feed_forward_dim: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        mask_memory: bool = True,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                self_attention=QuerySelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                cross_attention=MemoryAttention(
                    embed_dim=embed_dim, num_heads=num_heads, dropout=dropout, mask_memory=mask_memory
                ),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, refine: Refine) -> DecoderOutput:
        check_groups(groups, anchor_dims=(0,), positions="given")
        blocked = build_attention_mask(groups)
        positions = join_positions(groups)

        def layer(i: int, states: Tensor, anchors: None) -> Tensor:
            return self.layers[i](states, positions, blocked, lambda attention, x: attention(x + positions, memory))

        return decode_layer_by_layer(groups, len(self.layers), layer, refine=refine, look_forward=None, norm=self.norm)


class RowColumnDecoder(nn.Module):
    """Anchor DETR's decoder: anchor points that stay where they are, row-column decoupled attention to one level."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_layers: int = 6,
        num_heads: int = 8,
        feed_forward_dim: int = 1024,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_features = embed_dim // 2  # per coordinate
        self.position_head = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=embed_dim, num_layers=2)
        xavier_init(self.position_head)
        self.layers = nn.ModuleList(
            DecoderLayer(
                self_attention=QuerySelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                cross_attention=RowColumnAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, refine: Refine) -> DecoderOutput:
        check_groups(groups, anchor_dims=(2,), positions="anchors")
        blocked = build_attention_mask(groups)
        points = join_anchors(groups)
        positions = self.position_head(sine_anchor_embedding(points, self.num_features).to(points.dtype))
        x_positions, y_positions = memory.embed_points(points).chunk(2, dim=-1)  # (B, N, D) each

        def layer(i: int, states: Tensor, anchors: Tensor) -> Tensor:
            return self.layers[i](
                states, positions, blocked, lambda attention, x: attention(x + x_positions, x + y_positions, memory)
            )

        return decode_layer_by_layer(groups, len(self.layers), layer, refine=refine, look_forward=None)
