"""Deformable sampling from standard operators, for files whose runtimes do not know dinox's own operator.

Both compute what :func:`dinox.ops.ms_deform_attn` does, for finite locations, and take sizes that are only known when
the file runs. Measured in onnxruntime on a CPU, the encoder's sampling at 480 x 640 takes 1.5 times as long by
``gather_sampler`` as by ``grid_sampler``. TensorRT has been seen to compile GridSample to something else in silence;
``gather_sampler`` has none.

Legend: B images, S memory tokens of all levels, H heads, C channels per head, Q queries, L levels, P points per level.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.ops import sampling_locations, softmax_over_samples
from dinox.structures.memory import Size

Sampler = Callable[[Tensor, Sequence[Size], Tensor, Tensor], Tensor]


def attend_by(sampler: Sampler) -> Callable[[Tensor, Sequence[Size], Tensor, Tensor, Tensor], Tensor]:
    """What takes the place of :func:`dinox.ops.ms_deform_attn_fused`, made of a sampler."""

    def attend(
        value: Tensor, spatial_shapes: Sequence[Size], references: Tensor, offsets: Tensor, logits: Tensor
    ) -> Tensor:
        sizes = torch.tensor(spatial_shapes, dtype=offsets.dtype, device=offsets.device)
        locations = sampling_locations(references, offsets, sizes)
        return sampler(value, spatial_shapes, locations, softmax_over_samples(logits))

    return attend


def grid_sampler(value: Tensor, spatial_shapes: Sequence[Size], locations: Tensor, weights: Tensor) -> Tensor:
    """By GridSample (ONNX opset 16): (B, S, H, C), L x (h, w), (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H * C)."""
    batch, _, heads, channels = value.shape
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B * H, Q, P, 2)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]  # (L, B * H, 1, Q, P)
    sums = []
    for level, ((h, w), tokens) in enumerate(zip(spatial_shapes, _levels(value, spatial_shapes), strict=True)):
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w)
        samples = F.grid_sample(maps, grids[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        sums.append((samples * weights[level]).sum(-1))  # (B * H, C, Q)
    return torch.stack(sums).sum(0).reshape(batch, heads * channels, -1).transpose(1, 2)


def gather_sampler(value: Tensor, spatial_shapes: Sequence[Size], locations: Tensor, weights: Tensor) -> Tensor:
    """By Gather and matrix products; shapes as in :func:`grid_sampler`."""
    batch, _, heads, channels = value.shape
    sums = []
    for level, ((h, w), tokens) in enumerate(zip(spatial_shapes, _levels(value, spatial_shapes), strict=True)):
        rows, shares = _corners(locations[:, :, :, level], h, w)  # (B, Q, H, 4P)
        shares = shares * weights[:, :, :, level].repeat(1, 1, 1, 4)
        # Of the rows of all images and heads: ((b * h * w) + row) * H + head.
        images = torch.arange(batch, device=value.device)[:, None, None, None] * (h * w)
        index = (images + rows) * heads + torch.arange(heads, device=value.device)[:, None]
        samples = F.embedding(index, tokens.reshape(-1, channels))  # (B, Q, H, 4P, C)
        sums.append(torch.matmul(shares[..., None, :], samples))  # (B, Q, H, 1, C)
    return torch.stack(sums).sum(0).flatten(2)


def _levels(value: Tensor, spatial_shapes: Sequence[Size]) -> Iterator[Tensor]:
    """(B, S, ...) -> (B, h * w, ...) of every level. ``split`` would be a sequence in ONNX, which few runtimes know."""
    start = 0
    for h, w in spatial_shapes:
        yield value[:, start : start + h * w]
        start = start + h * w


def _corners(locations: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around every location of a level, and their shares in its bilinear value.

    locations: (B, Q, H, P, 2) -> rows (B, Q, H, 4P) int64 in [0, height * width), shares (B, Q, H, 4P), 0 outside.
    """
    (x, x_share), (y, y_share) = (
        _neighbours(locations[..., axis], size) for axis, size in ((0, width), (1, height))
    )  # each (2, B, Q, H, P)
    rows = y[:, None] * width + x  # (2, 2, B, Q, H, P)
    shares = y_share[:, None] * x_share
    return tuple(torch.cat([*each.flatten(0, 1).unbind(0)], dim=-1) for each in (rows, shares))


def _neighbours(locations: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis: (...) in [0, 1] -> the pixels before and after (2, ...) int64, and their shares (2, ...)."""
    position = locations * size - 0.5
    before = position.floor()
    pixels = torch.stack([before, before + 1])
    shares = torch.stack([before + 1 - position, position - before])
    inside = (pixels >= 0) & (pixels <= size - 1)
    return pixels.clamp(0, size - 1).long(), torch.where(inside, shares, 0.0)
