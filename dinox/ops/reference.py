"""Multi-scale deformable attention in plain PyTorch: slow, readable, for any device. It documents what kernels compute.

Each query of each head takes P samples from each of L feature levels, bilinearly interpolated at real-valued locations,
and returns their weighted sum (Deformable DETR, arXiv 2010.04159, equation 3).

A location (x, y) is in [0, 1] of its level: (0, 0) is the top left corner of the top left pixel, so pixel centres lie
at (column + 0.5) / width, and ``location * size - 0.5`` is in pixels. Pixels beyond the level count as zeros. A sample
counts if and only if -1 < x < width and -1 < y < height in pixels; any other one, and with it any NaN or infinite
location, contributes nothing, whatever its weight, and gets no gradient.

Legend: B images, S memory tokens of all levels, H heads, C channels per head, Q queries, L levels, P points per level.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def level_sizes(spatial_shapes: Tensor, num_tokens: int) -> list[tuple[int, int]]:
    """The (height, width) of each level as integers, checked to be positive and to add up to the tokens of value."""
    sizes = [(height, width) for height, width in spatial_shapes.tolist()]
    if any(height <= 0 or width <= 0 for height, width in sizes):
        raise ValueError(f"ms_deform_attn: spatial_shapes: expected positive heights and widths, got {sizes}")
    total = sum(height * width for height, width in sizes)
    if total != num_tokens:
        raise ValueError(
            f"ms_deform_attn: spatial_shapes: expected heights * widths to add up to the {num_tokens} tokens of value, "
            f"got {total} from {sizes}"
        )
    return sizes


def accumulation_dtype(value: Tensor) -> torch.dtype:
    """The dtype of locations, weights and sums: never less than float32, float64 for float64 values."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Shapes and dtypes as in ``dinox.ops.ms_deform_attn``. Differentiable by autograd.

    (B, S, H, C), (L, 2), (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H * C)
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    if value.numel() == 0 or sampling_locations.numel() == 0:  # grid_sample takes no empty inputs
        return value.new_zeros((batch, queries, heads * channels))
    output = value.new_zeros((batch * heads, channels, queries), dtype=accumulation_dtype(value))
    for maps, grid, weights in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        output = output + (_sample(maps, grid) * weights).sum(-1)
    # (B * H, C, Q) -> (B, H * C, Q) -> (B, Q, H * C)
    return output.reshape(batch, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_reference_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights, in their dtypes; needs no autograd graph."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    if value.numel() == 0 or sampling_locations.numel() == 0:
        return tuple(tensor.new_zeros(tensor.shape) for tensor in (value, sampling_locations, attention_weights))
    # (B, Q, H * C) -> (B * H, C, Q, 1)
    grad = grad_output.to(accumulation_dtype(value)).transpose(1, 2).reshape(batch * heads, channels, queries, 1)
    grad_maps, grad_grids, grad_weights = [], [], []
    for maps, grid, weights in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        grad_weights.append((grad * _sample(maps, grid)).sum(1))
        grad_map, grad_grid = _sample_backward(grad * weights, maps, grid)
        grad_maps.append(grad_map.flatten(2))
        grad_grids.append(grad_grid)
    # per level (B * H, C, H_l * W_l) -> (B, H, C, S) -> (B, S, H, C)
    grad_value = torch.cat(grad_maps, -1).reshape(batch, heads, channels, -1).permute(0, 3, 1, 2)
    # per level (B * H, Q, P, ...) -> (B, H, Q, L, P, ...) -> (B, Q, H, L, P, ...); the grid is 2 * locations - 1
    grad_locations = 2 * torch.stack(grad_grids, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    grad_weights = torch.stack(grad_weights, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    counts = _counts(spatial_shapes, sampling_locations)
    return (
        grad_value.contiguous().to(value.dtype),
        torch.where(counts[..., None], grad_locations, 0).contiguous(),
        torch.where(counts, grad_weights, 0).contiguous(),
    )


# ---------------------------------------------------------------- from raw inputs


def sampling_locations(reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor) -> Tensor:
    """Where to sample, in [0, 1] of every level.

    reference_points: (B, Q, L, 2) points, the offsets count cells; or (B, Q, L, 4) boxes (cxcywh), the offsets count
    half box sizes, shared by the P points. sampling_offsets: (B, Q, H, L, P, 2). spatial_shapes: (L, 2).
    Returns (B, Q, H, L, P, 2), xy.
    """
    anchors = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
    return anchors[..., :2] + sampling_offsets * _offset_steps(anchors, sampling_offsets, spatial_shapes)


def ms_deform_attn_fused_reference(
    value: Tensor, spatial_shapes: Tensor, reference_points: Tensor, sampling_offsets: Tensor, attention_logits: Tensor
) -> Tensor:
    """Shapes and dtypes as in ``dinox.ops.ms_deform_attn_fused``. Differentiable by autograd."""
    precise = accumulation_dtype(value)
    locations = sampling_locations(reference_points, sampling_offsets.to(precise), spatial_shapes)
    return ms_deform_attn_reference(
        value, spatial_shapes, locations, softmax_over_samples(attention_logits.to(precise))
    )


def ms_deform_attn_fused_reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference_points, sampling_offsets and attention_logits; needs no autograd graph."""
    precise = accumulation_dtype(value)
    offsets, weights = sampling_offsets.to(precise), softmax_over_samples(attention_logits.to(precise))
    locations = sampling_locations(reference_points, offsets, spatial_shapes)
    grad_value, grad_locations, grad_weights = ms_deform_attn_reference_backward(
        grad_output, value, spatial_shapes, locations, weights
    )
    grad_logits = weights * (grad_weights - (weights * grad_weights).sum((-2, -1), keepdim=True))
    steps = _offset_steps(reference_points[:, :, None, :, None], offsets, spatial_shapes)
    grad_references = grad_locations.sum((2, 4))  # (B, Q, L, 2)
    if reference_points.shape[-1] == 4:
        grad_sizes = (grad_locations * offsets).sum((2, 4)) * (0.5 / offsets.shape[-2])
        grad_references = torch.cat([grad_references, grad_sizes], -1)
    grad_offsets = (grad_locations * steps).to(sampling_offsets.dtype)
    return grad_value, grad_references, grad_offsets, grad_logits.to(attention_logits.dtype)


def _offset_steps(anchors: Tensor, offsets: Tensor, spatial_shapes: Tensor) -> Tensor:
    """What one unit of an offset is in [0, 1] of its level; anchors: (B, Q, 1, L, 1, 2 or 4)."""
    if anchors.shape[-1] == 2:
        return 1 / spatial_shapes.flip(-1).to(offsets)[:, None]  # (L, 1, 2)
    return anchors[..., 2:] * (0.5 / offsets.shape[-2])


def softmax_over_samples(logits: Tensor) -> Tensor:
    """(B, Q, H, L, P): one softmax over all L * P samples."""
    return logits.flatten(-2).softmax(-1).view(logits.shape)


# ---------------------------------------------------------------- levels and samples


def _counts(spatial_shapes: Tensor, sampling_locations: Tensor) -> Tensor:
    """Which samples count at all: (B, Q, H, L, P) booleans. Comparisons with NaN are false."""
    sizes = spatial_shapes.flip(-1).to(sampling_locations)[:, None]  # (L, 1, 2): (width, height)
    pixels = sampling_locations * sizes - 0.5
    return ((pixels > -1) & (pixels < sizes)).all(-1)


def _levels(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per level: value maps (B * H, C, height, width), grid (B * H, Q, P, 2) in [-1, 1], weights (B * H, 1, Q, P)."""
    sizes = level_sizes(spatial_shapes, value.shape[1])
    counts = _counts(spatial_shapes, sampling_locations)
    grid = torch.where(counts[..., None], 2 * sampling_locations - 1, -3)  # -3 is outside of every level
    weights = torch.where(counts, attention_weights, 0)
    per_level = value.to(accumulation_dtype(value)).split([height * width for height, width in sizes], 1)
    for level, (height, width) in enumerate(sizes):
        # (B, H_l * W_l, H, C) -> (B, H, C, H_l * W_l) -> (B * H, C, H_l, W_l)
        maps = per_level[level].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
        # (B, Q, H, P, ...) -> (B, H, Q, P, ...) -> (B * H, Q, P, ...)
        yield (
            maps,
            grid[:, :, :, level].transpose(1, 2).flatten(0, 1),
            weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None],
        )


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    """(N, C, height, width) at (N, Q, P, 2) -> (N, C, Q, P)."""
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _sample_backward(grad: Tensor, maps: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of maps and grid in ``_sample``."""
    bilinear, zeros = 0, 0  # ATen's numbers of the two modes
    return torch.ops.aten.grid_sampler_2d_backward(grad, maps, grid, bilinear, zeros, False, [True, True])
