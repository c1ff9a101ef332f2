"""Parameters and GFLOPs of a model, by part.

The counting rule, the same for every model: one multiply-add is one FLOP (as in the tables of this field's papers),
counted by fvcore while the model detects on one image. Convolutions, linear layers, matrix products, attention and
normalisation count; deformable sampling counts 4 multiply-adds for the bilinear value and 1 for the attention weight,
per sampled channel. Elementwise operations, softmax, interpolation of masks and top-k do not count. The box head of a
two-stage detector counts for as many regions as the model's weights propose, which are few without training.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from dinox.analysis.modes import in_mode
from dinox.analysis.parameters import count_parameters
from dinox.ops import multiply_adds

DETECTION_SIZE = (800, 1333)  # height, width: where papers count


@dataclass(frozen=True)
class Complexity:
    """parameters: of the whole model and of its parts, training-only ones included; gflops likewise, of one detection.

    The entry "" is the whole model.
    """

    parameters: dict[str, int]
    gflops: dict[str, float]


def measure_complexity(model: nn.Module, *, size: tuple[int, int] = DETECTION_SIZE) -> Complexity:
    """Run the model once on an image of this (height, width), in evaluation mode, and count."""
    image = torch.zeros(3, *size, device=model.device)
    with in_mode(model, training=False), torch.no_grad():
        counter = FlopCountAnalysis(_OnOneImage(model), image)
        counter.set_op_handle(**_HANDLES)
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = counter.by_module()
    parts = ["", *(name for name, _ in model.named_children())]
    return Complexity(
        parameters={part: count_parameters(model.get_submodule(part)) for part in parts},
        gflops={part: by_module[f"model.{part}".rstrip(".")] / 1e9 for part in parts},
    )


class _OnOneImage(nn.Module):
    """Tensors in, tensors out, as tracing wants it. (detectron2's own wrapper needs caffe2 on v0.6.)"""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        (found,) = self.model.inference([{"image": image}], do_postprocess=False)
        return found.scores, found.pred_boxes.tensor


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter:
    query, key, value = (get_shape(each) for each in inputs[:3])  # (..., N, D), (..., M, D), (..., M, V)
    return Counter({"attention": math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _deformable_sampling_flops(inputs: list[Any], outputs: list[Any]) -> Counter:
    weights = next(shape for shape in map(get_shape, reversed(inputs)) if shape and len(shape) == 5)  # (B, Q, H, L, P)
    return Counter({"ms_deform_attn": multiply_adds(get_shape(inputs[0]), weights)})


_HANDLES = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "dinox::ms_deform_attn": _deformable_sampling_flops,
}
