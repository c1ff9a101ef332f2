"""Multi-scale deformable attention (Deformable DETR, equation 3), as a module around its operator.

Legend: B images, Q queries, S memory tokens, D channels, H heads, L levels, P points.
"""

import math

import torch
from torch import Tensor, nn

from dinox.layers.attention import check_heads
from dinox.ops import ms_deform_attn_fused
from dinox.structures import Memory


def ring_offsets(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Initial sampling offsets (H * L * P * 2): head h looks along angle 2 pi h / H, point p goes p + 1 cells that way.

    The directions lie on a square ring (divided by their largest coordinate) and are the same on all levels.
    """
    angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    direction = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (H, 2)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    offsets = direction[:, None, None] * steps[:, None]  # (H, 1, P, 2)
    return offsets.expand(-1, num_levels, -1, -1).flatten()


class DeformableAttention(nn.Module):
    """Every query samples P points per head and level of the memory around its reference, and mixes them.

    The parameter names are those of all public implementations. The residual is the caller's.

    attend: :func:`dinox.ops.ms_deform_attn_fused`, or what takes its place in files for runtimes that do not know it.
    """

    attend = staticmethod(ms_deform_attn_fused)

    def __init__(self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring_offsets(self.num_heads, self.num_levels, self.num_points))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """query: (B, Q, D), positions already added. references: (B, Q, L, 2) or (B, Q, L, 4), in [0, 1] of each level.
        Returns (B, Q, D).
        """
        samples = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory.tokens)
        if memory.is_padded:
            # After the projection, so that its bias does not leak into padding.
            value = value.masked_fill(memory.padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, H, D / H)
        offsets = self.sampling_offsets(query).unflatten(-1, (*samples, 2))
        logits = self.attention_weights(query).unflatten(-1, samples)
        sampled = self.attend(value, memory.spatial_shapes, references, offsets, logits)  # (B, Q, D)
        return self.dropout(self.output_proj(sampled))
