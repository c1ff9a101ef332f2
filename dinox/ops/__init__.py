"""Operators with compiled kernels, their references, and which of the two runs."""

from dinox.ops.flops import multiply_adds
from dinox.ops.fused import ms_deform_attn_fused
from dinox.ops.library import backend, why_reference
from dinox.ops.ms_deform_attn import ms_deform_attn
from dinox.ops.reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations,
    softmax_over_samples,
)

__all__ = [
    "backend",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "multiply_adds",
    "sampling_locations",
    "softmax_over_samples",
    "why_reference",
]
