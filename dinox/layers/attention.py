"""Dense attention among queries."""

from torch import Tensor, nn

from dinox.layers.feed_forward import xavier_init


class QuerySelfAttention(nn.Module):
    """Multi-head self-attention whose queries and keys carry the positional queries and whose values do not.

    torch's ``nn.MultiheadAttention`` (scaled-dot-product kernels) does the work; the residual is the caller's.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        xavier_init(self)

    def forward(self, content: Tensor, positions: Tensor, blocked: Tensor | None) -> Tensor:
        """content, positions: (B, N, D); blocked: (N, N) or (B, N, N) bool, True = may not attend. -> (B, N, D)."""
        query = content + positions
        if blocked is not None and blocked.dim() == 3:
            blocked = blocked.repeat_interleave(self.num_heads, dim=0)  # (B * heads, N, N), as torch wants it
        attended, _ = self.attention(query, query, content, attn_mask=blocked, need_weights=False)
        return self.dropout(attended)
