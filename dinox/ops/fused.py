"""Multi-scale deformable attention from raw inputs, the operator that attention modules call.

What a module has to do before :func:`dinox.ops.ms_deform_attn` (offsets to locations, logits to weights) moves more
bytes than the attention itself; here it happens inside the kernels, and only the raw inputs are kept for the backward
pass. ``torch.ops.dinox.ms_deform_attn_fused`` is registered for all backends as the unfused operator is.

Legend: B images, S memory tokens of all levels, H heads, C channels per head, Q queries, L levels, P points per level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dinox.ops.arguments import argument_error, check_tensor, check_value
from dinox.ops.ms_deform_attn import ms_deform_attn
from dinox.ops.reference import (
    accumulation_dtype,
    ms_deform_attn_fused_reference,
    ms_deform_attn_fused_reference_backward,
    sampling_locations,
    softmax_over_samples,
)
from dinox.ops.registration import register


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """``ms_deform_attn`` at ``reference + offset`` with weights ``softmax(logits)`` (Deformable DETR, equation 3).

    Args:
        value: (B, S, H, C), the L levels flattened row by row and concatenated; float32, float64, float16 or bfloat16.
        spatial_shapes: L pairs (height, width).
        reference_points: (B, Q, L, 2), points (x, y) in [0, 1] of each level, around which offsets count cells; or
            (B, Q, L, 4), boxes (cxcywh), around whose centres offsets count half widths and heights divided by P.
            float32 at least.
        sampling_offsets: (B, Q, H, L, P, 2), (x, y), of any floating point dtype.
        attention_logits: (B, Q, H, L, P), of any floating point dtype; one softmax over L * P.

    Returns:
        (B, Q, H * C) in value's dtype; locations, weights and sums are formed in float32 (float64 for float64 values).
        Logits that are not finite may make all of their (query, head) NaN, also where no sample lies inside.

    Raises ValueError naming the argument, what was expected and what was given.
    """
    flat = _flat(spatial_shapes)
    _check(value, flat, reference_points, sampling_offsets, attention_logits)
    if torch.jit.is_tracing():  # as fvcore's counters do; the tracer cannot record the operator's list of sizes
        shapes, precise = _as_tensor(flat), accumulation_dtype(value)
        locations = sampling_locations(reference_points.to(precise), sampling_offsets.to(precise), shapes)
        return ms_deform_attn(value, shapes, locations, softmax_over_samples(attention_logits.to(precise)))
    return torch.ops.dinox.ms_deform_attn_fused(
        value, flat, reference_points.to(accumulation_dtype(value)), sampling_offsets, attention_logits
    )


# ---------------------------------------------------------------- arguments


def _flat(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    if isinstance(spatial_shapes, Tensor) or not all(
        isinstance(size, (tuple, list)) and len(size) == 2 for size in spatial_shapes
    ):
        raise argument_error("spatial_shapes", "a sequence of (height, width)", spatial_shapes)
    if not spatial_shapes:
        raise argument_error("spatial_shapes", "at least one level", spatial_shapes)
    return [side for size in spatial_shapes for side in size]


def _check(value: Tensor, shapes: list[int], references: Tensor, offsets: Tensor, logits: Tensor) -> None:
    check_value(value)
    if offsets.dim() != 6:
        raise argument_error("sampling_offsets", "6 dimensions (B, Q, H, L, P, 2)", tuple(offsets.shape))
    batch, _, heads, _ = value.shape
    queries, levels, points = offsets.shape[1], len(shapes) // 2, offsets.shape[4]
    samples = (batch, queries, heads, levels, points)
    check_tensor(offsets, "sampling_offsets", "(B, Q, H, L, P, 2)", (*samples, 2), value)
    check_tensor(logits, "attention_logits", "(B, Q, H, L, P)", samples, value)
    if references.dim() != 4 or references.shape[-1] not in (2, 4):
        raise argument_error("reference_points", "shape (B, Q, L, 2) or (B, Q, L, 4)", tuple(references.shape))
    expected = (batch, queries, levels, references.shape[-1])
    check_tensor(references, "reference_points", f"(B, Q, L, {references.shape[-1]})", expected, value)


# ---------------------------------------------------------------- registration


def _as_tensor(spatial_shapes: Sequence[int]) -> Tensor:
    return torch.tensor(spatial_shapes, dtype=torch.int64, device="cpu").view(-1, 2)


def _reference(value: Tensor, spatial_shapes: Sequence[int], *samples: Tensor) -> Tensor:
    return ms_deform_attn_fused_reference(value, _as_tensor(spatial_shapes), *samples)


def _reference_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], *samples: Tensor
) -> tuple[Tensor, ...]:
    return ms_deform_attn_fused_reference_backward(grad_output, value, _as_tensor(spatial_shapes), *samples)


register(
    "ms_deform_attn_fused",
    reference=_reference,
    reference_backward=_reference_backward,
    num_precise=1,  # reference points; offsets and logits keep their dtypes
)
