"""Sine embeddings of pixel positions and of anchor boxes.

Legend: B images, F sine features per coordinate, D = channels of the model.
"""

import math

import torch
from torch import Tensor, nn

from dinox.utils.precision import at_least_float32

FULL_TURN = 2 * math.pi
_NORMALISER_EPS = 1e-6
ANCHOR_TEMPERATURE = 10000  # always, also where the map uses 20, in the official DINO and in detrex


def sine_features(angles: Tensor, num_features: int, temperature: float) -> Tensor:
    """(...) angles -> (..., F): even features sine, odd features cosine, of angle / temperature^(2 floor(i/2) / F)."""
    index = torch.arange(num_features, dtype=torch.float32, device=angles.device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    scaled = angles[..., None] / frequency  # (..., F)
    return torch.stack([scaled[..., 0::2].sin(), scaled[..., 1::2].cos()], dim=-1).flatten(-2)


def axis_positions(padding_mask: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Position of every cell counted from the image's top left corner, from 1, and divided by the image's extent.

    padding_mask: (B, h, w) bool, True = padding. Returns x and y, both (B, h, w); cells in padded rows or columns carry
    meaningless numbers, which attention never looks at.
    """
    inside = (~padding_mask).float()
    y, x = inside.cumsum(1), inside.cumsum(2)  # 1-based counts
    return (x + offset) / (x[:, :, -1:] + _NORMALISER_EPS), (y + offset) / (y[:, -1:, :] + _NORMALISER_EPS)


def sine_position_map(padding_mask: Tensor, num_features: int, temperature: float, offset: float) -> Tensor:
    """padding_mask: (B, h, w) bool, True = padding. Returns (B, 2F, h, w): the y block, then the x block."""
    x, y = axis_positions(padding_mask, offset)
    features = [sine_features(each * FULL_TURN, num_features, temperature) for each in (y, x)]
    return torch.cat(features, dim=-1).permute(0, 3, 1, 2)


def sine_anchor_embedding(anchors: Tensor, num_features: int, temperature: float = ANCHOR_TEMPERATURE) -> Tensor:
    """Anchor points (..., 2) or boxes (..., 4) in [0, 1] -> (..., 2F) or (..., 4F), blocks ordered y, x[, w, h].

    DAB-DETR, equation 8; in float32 whatever the autocast dtype, since the phases reach 2 pi * 1.
    """
    x, y, *size = at_least_float32(anchors).unbind(-1)
    return sine_features(torch.stack([y, x, *size], dim=-1) * FULL_TURN, num_features, temperature).flatten(-2)


class SinePositionEmbedding(nn.Module):
    """Module form of :func:`sine_position_map` for ``embed_dim`` channels.

    Temperature 20 and offset 0 are DINO's (paper table 8, official code); detrex uses 10000 and -0.5.
    """

    def __init__(self, *, embed_dim: int, temperature: float = 20, offset: float = 0.0):
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim must be divisible by 4 (sine and cosine of y and x), got {embed_dim}")
        self.num_features = embed_dim // 2
        self.temperature = temperature
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """(B, h, w) bool, True = padding -> (B, embed_dim, h, w)."""
        return sine_position_map(padding_mask, self.num_features, self.temperature, self.offset)
