"""Row-column decoupled attention (Anchor DETR, section 3.4).

Legend: B images, N queries, S = h * w memory tokens of one level, D channels, H heads, C = D / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers.attention import check_heads
from dinox.layers.feed_forward import MLP
from dinox.layers.position_embedding import FULL_TURN, axis_positions, sine_features
from dinox.structures import Memory

_AXIS_TEMPERATURE = 10000  # the authors' code


class RowColumnPositions(nn.Module):
    """Positions of columns (x) and of rows (y), embedded apart by one small network that anchor points pass as well.

    A position embedding with 2 D channels: the x half, then the y half.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
        self.adapter = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=embed_dim, num_layers=2)

    def forward(self, padding_mask: Tensor) -> Tensor:
        """(B, h, w) bool, True = padding -> (B, 2 D, h, w)."""
        x, y = axis_positions(padding_mask, offset=-0.5)
        return self.embed_points(torch.stack([x, y], dim=-1)).permute(0, 3, 1, 2)

    def embed_points(self, points: Tensor) -> Tensor:
        """(..., 2) x, y as shares of the image -> (..., 2 D)."""
        features = sine_features(points * FULL_TURN, self.embed_dim, _AXIS_TEMPERATURE)  # (..., 2, D)
        return self.adapter(features.to(self.adapter.layers[0].weight.dtype)).flatten(-2)


class _AxisWeights(nn.Module):
    """Attention weights along one axis; a module of its own so that they can be watched."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, inside: Tensor) -> Tensor:
        """(B, H, N, C), (B, H, length, C), (B, length) bool -> (B, H, N, length), dropout applied."""
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return self.dropout(scores.masked_fill(~inside[:, None, None], -torch.inf).softmax(-1))


class RowColumnAttention(nn.Module):
    """Attention first along x, then along y: the weight of a cell is that of its column times that of its row.

    Keys of a column (row) come from the mean over its cells that are not padding; the authors' code counts padding in,
    so that an image depends on its batch. What is stored for N queries is N (h + w) weights instead of N h w. For one
    level.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads = num_heads
        # Projections of x queries, y queries, x keys, y keys and values, stacked as in the authors' weights.
        self.in_proj_weight = nn.Parameter(torch.empty(5 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * embed_dim))
        self.output = nn.Linear(embed_dim, embed_dim)
        self.x_weights, self.y_weights = _AxisWeights(dropout), _AxisWeights(dropout)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_query: Tensor, y_query: Tensor, memory: Memory) -> Tensor:
        """x_query, y_query: (B, N, D), embedded positions of each axis already added. Returns (B, N, D)."""
        if len(memory.spatial_shapes) != 1:
            raise ValueError(
                f"row-column attention is for one level, but the memory has {len(memory.spatial_shapes)}: set "
                "model.backbone.num_levels=1 and one map in out_features, or take another encoder and decoder"
            )
        height, width = memory.spatial_shapes[0]
        inside = ~memory.padding_mask.unflatten(1, (height, width))  # (B, h, w)
        tokens = memory.tokens.unflatten(1, (height, width))
        x_positions, y_positions = memory.positions.unflatten(1, (height, width)).chunk(2, dim=-1)
        columns = _mean(tokens + x_positions, inside, dim=1)  # (B, w, D)
        rows = _mean(tokens + y_positions, inside, dim=2)  # (B, h, D)
        weights, biases = self.in_proj_weight.chunk(5), self.in_proj_bias.chunk(5)
        inputs = (x_query, y_query, columns, rows, tokens.flatten(1, 2))
        x_query, y_query, columns, rows, value = (
            F.linear(each, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, ..., C)
            for each, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        x_weights = self.x_weights(x_query, columns, inside.any(1))  # (B, H, N, w)
        y_weights = self.y_weights(y_query, rows, inside.any(2))  # (B, H, N, h)
        value = value.unflatten(2, (height, width))  # (B, H, h, w, C)
        if width < height:  # the longer axis first: what lies between the two steps has the length of the other
            x_weights, y_weights, value = y_weights, x_weights, value.transpose(2, 3)
        along_x = x_weights @ value.transpose(2, 3).flatten(3)  # (B, H, N, h * C)
        attended = y_weights[..., None, :] @ along_x.unflatten(-1, (value.shape[2], -1))  # (B, H, N, 1, C)
        return self.dropout(self.output(attended.squeeze(-2).transpose(1, 2).flatten(2)))


def _mean(values: Tensor, inside: Tensor, dim: int) -> Tensor:
    """Mean over one axis of (B, h, w, D), padding left out; 0 where all is padding."""
    weights = inside[..., None].to(values.dtype)
    return (values * weights).sum(dim) / weights.sum(dim).clamp(min=1)
