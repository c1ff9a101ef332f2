"""Deformable decoder (Deformable DETR, section 4.1; DINO, sections 3.4 and 3.5).

Legend: B images, N queries of all groups, L levels, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dinox.layers import (
    MLP,
    Activation,
    DecoderLayer,
    DeformableAttention,
    QuerySelfAttention,
    sine_anchor_embedding,
    xavier_init,
)
from dinox.modeling.decoder.layers import (
    DecoderOutput,
    LookForward,
    Positions,
    Refine,
    check_choice,
    check_groups,
    decode_layer_by_layer,
    join_positions,
)
from dinox.structures import Memory, QueryGroup, build_attention_mask


class DeformableDecoder(nn.Module):
    """Layers that look at the memory around anchor boxes or points, and move them.

    look_forward, positions: see :mod:`dinox.modeling.decoder.layers`. normed_outputs: a norm on every layer's states,
    on their way to the heads (DINO has it, Deformable DETR and DAB-Deformable-DETR do not).
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
        activation: Activation = "relu",
        look_forward: LookForward | None = "twice",
        positions: Positions = "anchors",
        normed_outputs: bool = True,
    ):
        super().__init__()
        check_choice("look_forward", look_forward, LookForward, or_none=True)
        check_choice("positions", positions, Positions)
        self.look_forward, self.positions = look_forward, positions
        self.num_features = embed_dim // 2  # per anchor coordinate
        self.position_head = self.position_scale = None
        if positions != "given":
            width = 4 * self.num_features
            self.position_head = MLP(in_dim=width, hidden_dim=embed_dim, out_dim=embed_dim, num_layers=2)
        if positions == "scaled_anchors" and num_layers > 1:  # the first layer has no use for it
            self.position_scale = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=embed_dim, num_layers=2)
        self.layers = nn.ModuleList(
            DecoderLayer(
                self_attention=QuerySelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                cross_attention=DeformableAttention(
                    embed_dim=embed_dim,
                    num_heads=num_heads,
                    num_levels=num_levels,
                    num_points=num_points,
                    dropout=dropout,
                ),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim) if normed_outputs else None
        for network in filter(None, (self.position_head, self.position_scale)):
            xavier_init(network)

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, refine: Refine) -> DecoderOutput:
        """``refine(layer, states, anchors)`` moves anchors (the box head of the layer)."""
        check_groups(groups, anchor_dims=(2, 4) if self.positions == "given" else (4,), positions=self.positions)
        blocked = build_attention_mask(groups)
        given = join_positions(groups) if self.positions == "given" else None
        scale = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4): from the image to the padded batch

        def layer(i: int, states: Tensor, anchors: Tensor) -> Tensor:
            references = anchors[:, :, None] * scale[..., : anchors.shape[-1]]  # (B, N, L, 2 or 4)
            positions = self._positions(i, states, anchors, references) if given is None else given
            return self.layers[i](
                states, positions, blocked, lambda attention, x: attention(x + positions, references, memory)
            )

        return decode_layer_by_layer(
            groups, len(self.layers), layer, refine=refine, look_forward=self.look_forward, norm=self.norm
        )

    def _positions(self, i: int, states: Tensor, anchors: Tensor, references: Tensor) -> Tensor:
        """Positional queries (B, N, D) from the anchors.

        The authors embed them as shares of the padded batch (on level 0) rather than of the image. That is kept in
        training, where published results come from; in evaluation an image must not depend on its batch.
        """
        embedded = references[:, :, 0] if self.training else anchors
        positions = self.position_head(sine_anchor_embedding(embedded, self.num_features).to(anchors.dtype))
        return positions if self.position_scale is None or i == 0 else positions * self.position_scale(states)
