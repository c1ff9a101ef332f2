"""Multi-scale deformable attention as loops over everything but channels: what the operators are held against."""

import math

import torch
from torch import Tensor


def naive_ms_deform_attn(
    value: Tensor, sizes: list[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """(B, S, H, C), [(height, width)], (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H * C); autograd follows."""
    batch, queries, heads, _, points, _ = sampling_locations.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total = value[b, :0, h].sum(0)  # zeros (C)
                start = 0
                for level, (height, width) in enumerate(sizes):
                    pixels = value[b, start : start + height * width, h]
                    start += height * width
                    for p in range(points):
                        x, y = sampling_locations[b, q, h, level, p]
                        sample = naive_bilinear(pixels, height, width, x * width - 0.5, y * height - 0.5)
                        if sample is not None:
                            total = total + attention_weights[b, q, h, level, p] * sample
                rows.append(total)
    return torch.cat(rows).view(batch, queries, -1)


def naive_bilinear(pixels: Tensor, height: int, width: int, x: Tensor, y: Tensor) -> Tensor | None:
    """(height * width, C) at a point in pixels -> (C), zeros around the level; None where a sample does not count."""
    if not (-1 < x < width and -1 < y < height):
        return None
    left, top = math.floor(x.item()), math.floor(y.item())
    sample = pixels[:0].sum(0)  # zeros (C)
    for row, row_factor in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_factor in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                sample = sample + row_factor * column_factor * pixels[row * width + column]
    return sample
