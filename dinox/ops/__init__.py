"""Operators with compiled kernels, their references, and which of the two runs."""

from dinox.ops.library import backend, why_reference
from dinox.ops.ms_deform_attn import ms_deform_attn
from dinox.ops.reference import ms_deform_attn_reference

__all__ = ["backend", "ms_deform_attn", "ms_deform_attn_reference", "why_reference"]
