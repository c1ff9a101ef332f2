"""What deformable sampling costs, for counters of operations.

A sample takes 4 multiply-adds for its bilinear value and 1 for its attention weight, in every channel of a head. The
arithmetic of locations and of the softmax is left out, as elementwise operations are by all counters. The backward
pass costs that for the gradient of value, and again for those of locations and weights (or what they come from).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from dinox.ops import library

_MULTIPLY_ADDS_PER_SAMPLE = 5


def multiply_adds(value: Sequence[int], weights: Sequence[int]) -> int:
    """Shapes (B, S, H, C) of value and (B, Q, H, L, P) of the attention weights or logits."""
    return _MULTIPLY_ADDS_PER_SAMPLE * math.prod(weights) * value[-1]


def _register() -> None:
    library.operators()  # defines them

    # torch's counter takes a multiply-add for two operations.
    def forward(value: Sequence[int], spatial_shapes: Any, *samples: Sequence[int], out_shape: Any = None) -> int:
        return 2 * multiply_adds(value, samples[-1])

    def backward(
        grad_output: Any, value: Sequence[int], spatial_shapes: Any, *samples_and_mask: Any, out_shape: Any = None
    ) -> int:
        *_, weights, (of_value, *of_samples) = samples_and_mask
        return 2 * (of_value + any(of_samples)) * multiply_adds(value, weights)

    operators = torch.ops.dinox
    register_flop_formula([operators.ms_deform_attn, operators.ms_deform_attn_fused])(forward)
    register_flop_formula([operators.ms_deform_attn_backward, operators.ms_deform_attn_fused_backward])(backward)


_register()
