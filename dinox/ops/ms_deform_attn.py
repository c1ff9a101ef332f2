"""Multi-scale deformable attention, the operator (Deformable DETR, arXiv 2010.04159, equation 3).

``ms_deform_attn`` is the public function. Below it, ``torch.ops.dinox.ms_deform_attn`` is registered once for all
backends.

Legend: B images, S memory tokens of all levels, H heads, C channels per head, Q queries, L levels, P points per level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dinox.ops.arguments import argument_error, check_tensor, check_value
from dinox.ops.reference import accumulation_dtype, ms_deform_attn_reference, ms_deform_attn_reference_backward
from dinox.ops.registration import register


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Samples value at P locations in each of L levels for each query and head, and sums the samples by their weights.

    Args:
        value: (B, S, H, C), the L levels flattened row by row and concatenated; float32, float64, float16 or bfloat16.
        spatial_shapes: (L, 2), the (height, width) of each level: an int64 tensor on the CPU or a sequence of pairs, so
            that no call waits for a device.
        sampling_locations: (B, Q, H, L, P, 2), (x, y) in [0, 1] of each level, pixel centres at (column + 0.5) / width.
            Pixels outside of a level are zeros; NaN and infinite locations contribute nothing. float32 at least: lower
            precision is converted, but has already lost the places between pixels of large levels.
        attention_weights: (B, Q, H, L, P), any numbers (attention modules pass a softmax over L * P); likewise.

    Returns:
        (B, Q, H * C) in value's dtype; sums are formed in float32 (float64 for float64 values).
    """
    spatial_shapes = _as_shapes_tensor(spatial_shapes)
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    precise = accumulation_dtype(value)
    return torch.ops.dinox.ms_deform_attn(
        value, spatial_shapes, sampling_locations.to(precise), attention_weights.to(precise)
    )


# ---------------------------------------------------------------- arguments


def _as_shapes_tensor(spatial_shapes: Tensor | Sequence[tuple[int, int]]) -> Tensor:
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes
    if not all(isinstance(size, (tuple, list)) and len(size) == 2 for size in spatial_shapes):
        raise argument_error("spatial_shapes", "a sequence of (height, width)", spatial_shapes)
    flat = [side for size in spatial_shapes for side in size]
    return torch.tensor(flat, dtype=torch.int64, device="cpu").view(-1, 2)


def _check(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    """All that can be told without reading tensors; the backends check that sizes add up to the tokens of value."""
    check_value(value)
    if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.shape[0] == 0:
        raise argument_error("spatial_shapes", "shape (L, 2) with at least one level", tuple(spatial_shapes.shape))
    if spatial_shapes.dtype != torch.int64 or spatial_shapes.device.type != "cpu":
        got = f"{spatial_shapes.dtype} on {spatial_shapes.device}"
        raise argument_error("spatial_shapes", "an int64 tensor on the CPU or a sequence of (height, width)", got)
    if sampling_locations.dim() != 6:
        raise argument_error("sampling_locations", "6 dimensions (B, Q, H, L, P, 2)", tuple(sampling_locations.shape))

    batch, _, heads, _ = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    weights_shape = (batch, queries, heads, spatial_shapes.shape[0], points)
    check_tensor(sampling_locations, "sampling_locations", "(B, Q, H, L, P, 2)", (*weights_shape, 2), value)
    check_tensor(attention_weights, "attention_weights", "(B, Q, H, L, P)", weights_shape, value)


# ---------------------------------------------------------------- registration

register(
    "ms_deform_attn",
    reference=ms_deform_attn_reference,
    reference_backward=ms_deform_attn_reference_backward,
    num_precise=2,  # locations and weights
)
