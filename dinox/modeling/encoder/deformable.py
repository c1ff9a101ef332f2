"""Deformable encoder (Deformable DETR, section 4.1).

Legend: B images, S memory tokens, L levels, D channels.
"""

from torch import nn

from dinox.layers import Activation, DeformableAttention, EncoderLayer
from dinox.structures import Memory


class DeformableEncoder(nn.Module):
    """Refines every token by attending around its own place on all levels. No norm after the last layer."""

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
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(
                self_attention=DeformableAttention(
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

    def forward(self, memory: Memory) -> Memory:
        references = memory.cell_centers[:, :, None] * memory.valid_ratios[:, None]  # (B, S, L, 2)
        for layer in self.layers:
            memory = layer(memory, lambda attention, now: attention(now.tokens + now.positions, references, now))
        return memory
