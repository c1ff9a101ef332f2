"""Dense attention: among queries, and of queries to the memory.

All of it runs on torch's fused scaled-dot-product attention. Residuals are the caller's.

Legend: B images, N queries, S memory tokens, D channels, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers.feed_forward import xavier_init
from dinox.structures import Memory


class QuerySelfAttention(nn.Module):
    """Multi-head self-attention whose queries and keys carry the positional queries and whose values do not."""

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(embed_dim, num_heads)
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


class MemoryAttention(nn.Module):
    """Multi-head attention to all tokens of the memory, whose keys carry their positions (DETR).

    ``mask_memory``: padding is never attended to.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0, mask_memory: bool = True):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.mask_memory = mask_memory
        xavier_init(self)

    def forward(self, query: Tensor, memory: Memory) -> Tensor:
        """query: (B, N, D), positions already added. Returns (B, N, D)."""
        attended, _ = self.attention(
            query,
            memory.tokens + memory.positions,
            memory.tokens,
            key_padding_mask=_padding(memory, self.mask_memory),
            need_weights=False,
        )
        return self.dropout(attended)


class ConditionalSelfAttention(nn.Module):
    """Self-attention whose content and position are projected apart, then added (Conditional DETR's code)."""

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.content_query, self.position_query = _linear(embed_dim), _linear(embed_dim)
        self.content_key, self.position_key = _linear(embed_dim), _linear(embed_dim)
        self.value, self.output = _linear(embed_dim), _linear(embed_dim)
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)

    def forward(self, content: Tensor, positions: Tensor, blocked: Tensor | None) -> Tensor:
        """content, positions: (B, N, D); blocked: (N, N) or (B, N, N) bool, True = may not attend. -> (B, N, D)."""
        query, key = self.project_query(content, positions), self.content_key(content) + self.position_key(positions)
        if blocked is not None and blocked.dim() == 3:
            blocked = blocked[:, None]  # (B, 1, N, N)
        heads = [_split_heads(each, self.num_heads) for each in (query, key, self.value(content))]
        return self.dropout(self.output(_attend(*heads, blocked, _rate(self.dropout))))

    def project_query(self, content: Tensor, positions: Tensor) -> Tensor:
        """What queries look for: (B, N, D), (B, N, D) -> (B, N, D)."""
        return self.content_query(content) + self.position_query(positions)


class ConditionalCrossAttention(nn.Module):
    """Attention to the memory by content and, beside it, by place: a head's query and key are concatenations of the two
    (Conditional DETR, section 3.3; DAB-DETR, section 4.3).

    positions_in_content: the content parts carry the positions too, as in the first decoder layer, whose content knows
    nothing yet. num_levels: with several, each is attended to apart, and the results are mixed by weights that a
    layer's query gives them (the code of DN-DETR's authors). mask_memory: padding is never attended to.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        positions_in_content: bool,
        num_levels: int = 1,
        dropout: float = 0.0,
        mask_memory: bool = True,
    ):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.content_query, self.place_query = _linear(embed_dim), _linear(embed_dim)
        self.position_query = _linear(embed_dim) if positions_in_content else None
        self.content_key, self.position_key = _linear(embed_dim), _linear(embed_dim)
        self.value, self.output = _linear(embed_dim), _linear(embed_dim)
        self.level_weights = nn.Linear(embed_dim, num_levels) if num_levels > 1 else None
        self.num_heads, self.mask_memory = num_heads, mask_memory
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        positions: Tensor,
        anchor_embedding: Tensor,
        memory: Memory,
        level_query: Tensor | None = None,
    ) -> Tensor:
        """content, positions (positional queries), anchor_embedding (sine) and, for several levels,
        level_query: (B, N, D). Returns (B, N, D).
        """
        query, key = self.content_query(content), self.content_key(memory.tokens)
        key_positions = self.position_key(memory.positions)
        if self.position_query is not None:
            query, key = query + self.position_query(positions), key + key_positions
        places = self.place_query(anchor_embedding)
        query = torch.cat([self._heads(query), self._heads(places)], dim=-1)  # (B, H, N, 2 D / H)
        key = torch.cat([self._heads(key), self._heads(key_positions)], dim=-1)
        padding = _padding(memory, self.mask_memory)
        blocked = None if padding is None else padding[:, None, None]  # (B, 1, 1, S)
        value = self._heads(self.value(memory.tokens))
        if self.level_weights is None:
            attended = _attend(query, key, value, blocked, _rate(self.dropout))
        else:
            weights = self.level_weights(level_query).softmax(-1)  # (B, N, L)
            attended = self._attend_by_level(query, key, value, blocked, weights, memory)
        return self.dropout(self.output(attended))

    def _attend_by_level(
        self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, weights: Tensor, memory: Memory
    ) -> Tensor:
        sizes = [height * width for height, width in memory.spatial_shapes]
        masks = [None] * len(sizes) if blocked is None else blocked.split(sizes, dim=-1)
        levels = zip(key.split(sizes, dim=2), value.split(sizes, dim=2), masks, weights.unbind(-1), strict=True)
        rate = _rate(self.dropout)
        return sum(weight[..., None] * _attend(query, k, v, mask, rate) for k, v, mask, weight in levels)

    def _heads(self, x: Tensor) -> Tensor:
        return _split_heads(x, self.num_heads)


def _rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ValueError unless every head gets the same number of channels."""
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")


def _linear(embed_dim: int) -> nn.Linear:
    linear = nn.Linear(embed_dim, embed_dim)
    xavier_init(linear)
    return linear


def _padding(memory: Memory, mask_memory: bool) -> Tensor | None:
    return memory.padding_mask if mask_memory and memory.is_padded else None


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
    """(B, H, N, C), (B, H, S, C), (B, H, S, D / H); blocked broadcasts to (B, H, N, S), True = may not attend.

    Returns (B, N, D).
    """
    mask = None if blocked is None else ~blocked
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)
