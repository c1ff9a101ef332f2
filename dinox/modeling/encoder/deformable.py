"""Deformable encoder (Deformable DETR, section 4.1).

Legend: B images, S memory tokens, L levels, D channels.
"""

from torch import Tensor, nn

from dinox.layers import DeformableAttention, FeedForward
from dinox.structures import Memory


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with a residual and a norm after it."""

    def __init__(
        self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feed_forward_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attention = DeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, dropout=dropout
        )
        self.self_attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(embed_dim=embed_dim, hidden_dim=feed_forward_dim, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)

    def forward(self, memory: Memory, references: Tensor) -> Memory:
        """references: (B, S, L, 2)."""
        tokens = memory.tokens
        attended = self.self_attention(tokens + memory.positions, references, memory)
        tokens = self.self_attention_norm(tokens + attended)
        return memory.with_tokens(self.feed_forward_norm(tokens + self.feed_forward(tokens)))


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
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                embed_dim=embed_dim,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def forward(self, memory: Memory) -> Memory:
        references = memory.cell_centers[:, :, None] * memory.valid_ratios[:, None]  # (B, S, L, 2)
        for layer in self.layers:
            memory = layer(memory, references)
        return memory
