"""The frame that all encoder layers have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dinox.layers.feed_forward import Activation, FeedForward
from dinox.structures import Memory


class EncoderLayer(nn.Module):
    """Self-attention of the memory and feed-forward, each with a residual and a norm after it."""

    is_segment = True  # see dinox/engine/segments.py

    def __init__(
        self,
        *,
        self_attention: nn.Module,
        embed_dim: int,
        feed_forward_dim: int,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ):
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(
            embed_dim=embed_dim, hidden_dim=feed_forward_dim, dropout=dropout, activation=activation
        )
        self.feed_forward_norm = nn.LayerNorm(embed_dim)

    def forward(self, memory: Memory, attend: Callable[[nn.Module, Memory], Tensor]) -> Memory:
        """``attend(self_attention, memory)`` -> (B, S, D) looks at the memory as the encoder does."""
        tokens = self.self_attention_norm(memory.tokens + attend(self.self_attention, memory))
        return memory.with_tokens(self.feed_forward_norm(tokens + self.feed_forward(tokens)))
