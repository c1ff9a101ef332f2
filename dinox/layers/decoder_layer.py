"""The frame that all decoder layers have in common.

Legend: B images, N queries, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dinox.layers.feed_forward import Activation, FeedForward


class DecoderLayer(nn.Module):
    """Self-attention among queries, attention to the memory, feed-forward; norms after the residuals.

    self_attention: called as ``self_attention(states, positions, blocked)``. cross_attention: called by the decoder.
    """

    is_segment = True  # see dinox/engine/segments.py

    def __init__(
        self,
        *,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        embed_dim: int,
        feed_forward_dim: int,
        dropout: float = 0.0,
        activation: Activation = "relu",
    ):
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = FeedForward(
            embed_dim=embed_dim, hidden_dim=feed_forward_dim, dropout=dropout, activation=activation
        )
        self.feed_forward_norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        blocked: Tensor | None,
        attend: Callable[[nn.Module, Tensor], Tensor],
    ) -> Tensor:
        """states, positions: (B, N, D). blocked: self-attention mask. ``attend(cross_attention, states)`` -> (B, N, D)
        looks at the memory as the decoder does. Returns (B, N, D).
        """
        states = self.self_attention_norm(states + self.self_attention(states, positions, blocked))
        states = self.cross_attention_norm(states + attend(self.cross_attention, states))
        return self.feed_forward_norm(states + self.feed_forward(states))
