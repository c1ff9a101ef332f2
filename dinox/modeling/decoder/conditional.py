"""Decoder whose attention to the memory compares content with content and place with place: Conditional DETR over
anchor points, DAB-DETR over anchor boxes.

Legend: B images, N queries of all groups, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dinox.layers import (
    MLP,
    Activation,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    DecoderLayer,
    sine_anchor_embedding,
    xavier_init,
)
from dinox.modeling.decoder.layers import (
    DecoderOutput,
    LookForward,
    Refine,
    check_choice,
    check_groups,
    decode_layer_by_layer,
    join_positions,
)
from dinox.structures import Memory, QueryGroup, build_attention_mask


class ConditionalDecoder(nn.Module):
    """Layers that look at the memory where the sine embedding of a query's anchor says, scaled by its state.

    anchor_dim: 2 for anchor points (Conditional DETR). 4 for anchor boxes: attention is modulated by width and height
    (DAB-DETR, equation 6). look_forward, positions: see :mod:`dinox.modeling.decoder.layers`. mask_memory: padding of
    the memory is never attended to; detrex's decoders do attend to it.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_levels: int = 1,
        num_layers: int = 6,
        num_heads: int = 8,
        feed_forward_dim: int = 2048,
        dropout: float = 0.0,
        activation: Activation = "relu",
        anchor_dim: Literal[2, 4] = 4,
        look_forward: LookForward | None = "twice",
        positions: Literal["anchors", "given"] = "anchors",
        mask_memory: bool = True,
    ):
        super().__init__()
        check_choice("anchor_dim", anchor_dim, Literal[2, 4])
        check_choice("look_forward", look_forward, LookForward, or_none=True)
        if anchor_dim == 2 and look_forward is not None:
            raise ValueError(
                f"look_forward = {look_forward!r} refines boxes from layer to layer, but anchor_dim is 2: points stay "
                "where they are. Set look_forward=null, or anchor_dim=4"
            )
        check_choice("positions", positions, Literal["anchors", "given"])
        self.anchor_dim, self.look_forward, self.positions = anchor_dim, look_forward, positions
        self.num_levels = num_levels
        self.num_features = embed_dim // 2  # per anchor coordinate

        def network(in_dim: int, out_dim: int) -> MLP:
            made = MLP(in_dim=in_dim, hidden_dim=embed_dim, out_dim=out_dim, num_layers=2)
            xavier_init(made)
            return made

        given = positions == "given"
        self.position_head = None if given else network(anchor_dim * self.num_features, embed_dim)
        # The first layer has no use for it.
        self.place_scale = network(embed_dim, embed_dim) if num_layers > 1 else None
        self.size_head = network(embed_dim, 2) if anchor_dim == 4 else None
        self.layers = nn.ModuleList(
            DecoderLayer(
                self_attention=ConditionalSelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                cross_attention=ConditionalCrossAttention(
                    embed_dim=embed_dim,
                    num_heads=num_heads,
                    positions_in_content=i == 0,
                    num_levels=num_levels,
                    dropout=dropout,
                    mask_memory=mask_memory,
                ),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
                activation=activation,
            )
            for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, refine: Refine) -> DecoderOutput:
        """``refine(layer, states, anchors)`` moves anchors (the box head of the layer)."""
        check_groups(groups, anchor_dims=(self.anchor_dim,), positions=self.positions)
        blocked = build_attention_mask(groups)
        given = join_positions(groups) if self.positions == "given" else None

        def layer(i: int, states: Tensor, anchors: Tensor) -> Tensor:
            embedded = sine_anchor_embedding(anchors, self.num_features).to(states.dtype)  # (B, N, 2 D or D)
            positions = self.position_head(embedded) if given is None else given
            wanted = self._wanted(i, states, anchors, embedded)
            level_query = (
                self.layers[i].self_attention.project_query(states, positions) if self.num_levels > 1 else None
            )
            return self.layers[i](
                states, positions, blocked, lambda attention, x: attention(x, positions, wanted, memory, level_query)
            )

        return decode_layer_by_layer(
            groups, len(self.layers), layer, refine=refine, look_forward=self.look_forward, norm=self.norm
        )

    def _wanted(self, i: int, states: Tensor, anchors: Tensor, embedded: Tensor) -> Tensor:
        """(B, N, D) what is compared with the positions of the memory: the embedded centre (y, then x), scaled by the
        state, and by how much wider (higher) the box should be than it is (DAB-DETR, equation 6).
        """
        wanted = embedded[..., : 2 * self.num_features]
        if i > 0:
            wanted = wanted * self.place_scale(states)
        if self.size_head is None:
            return wanted
        stretch = self.size_head(states).sigmoid() / anchors[..., 2:]  # (B, N, 2): of x, of y
        y, x = wanted.chunk(2, dim=-1)
        return torch.cat([y * stretch[..., 1:], x * stretch[..., :1]], dim=-1)
