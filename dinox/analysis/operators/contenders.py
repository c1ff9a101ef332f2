"""Implementations of deformable attention that may be installed, behind one signature."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.analysis.operators.cases import Inputs
from dinox.ops import ms_deform_attn, ms_deform_attn_fused, ms_deform_attn_reference

BASELINE = "grid_sample"


@dataclass(frozen=True, eq=False)
class Contender:
    """``attend(inputs)`` -> (B, Q, H * C); ``leaves(inputs)``: what it is differentiated by, value first.

    ``is_reference``: what others with the same leaves are compared with.
    """

    name: str
    attend: Callable[[Inputs], Tensor]
    leaves: Callable[[Inputs], tuple[Tensor, ...]]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    devices: tuple[str, ...] = ("cpu", "cuda")
    ours: bool = False
    is_reference: bool = False


_ANY = (torch.float32, torch.bfloat16, torch.float16)


def _of_locations(inputs: Inputs) -> tuple[Tensor, ...]:
    return inputs.value, inputs.locations, inputs.weights


def _of_offsets(inputs: Inputs) -> tuple[Tensor, ...]:
    return inputs.value, inputs.offsets, inputs.logits


def find_contenders() -> tuple[list[Contender], dict[str, str]]:
    """Those that can be imported here, ours and the grid_sample form first; and why others cannot."""
    found = [
        Contender("dinox", _dinox, _of_locations, _ANY, ours=True),
        Contender("dinox fused", _dinox_fused, _of_offsets, _ANY, ours=True),
        Contender(BASELINE, _grid_sample, _of_locations, is_reference=True),
        Contender("softmax + locations + grid_sample", _grid_sample_from_offsets, _of_offsets, is_reference=True),
    ]
    missing = {}
    for name, make in (("mmcv", _mmcv), ("deformops", _deformops), ("transformers", _transformers)):
        try:
            found.append(make())
        except Exception as error:  # whatever importing a package of compiled kernels raises
            missing[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return found, missing


def _dinox(inputs: Inputs) -> Tensor:
    return ms_deform_attn(inputs.value, inputs.sizes, inputs.locations, inputs.weights)


def _dinox_fused(inputs: Inputs) -> Tensor:
    return ms_deform_attn_fused(inputs.value, inputs.sizes, inputs.references, inputs.offsets, inputs.logits)


def _grid_sample(inputs: Inputs) -> Tensor:
    return ms_deform_attn_reference(inputs.value, torch.tensor(inputs.sizes), inputs.locations, inputs.weights)


def _grid_sample_from_offsets(inputs: Inputs) -> Tensor:
    sizes = torch.tensor(inputs.sizes)
    cells = sizes.flip(-1)[:, None].to(inputs.offsets)
    locations = inputs.references[:, :, None, :, None] + inputs.offsets / cells
    weights = inputs.logits.flatten(-2).softmax(-1).view(inputs.logits.shape)
    return ms_deform_attn_reference(inputs.value, sizes, locations, weights)


def _starts(sizes: Tensor) -> Tensor:
    areas = sizes.prod(1)
    return torch.cat([areas.new_zeros(1), areas.cumsum(0)[:-1]])


def _mmcv() -> Contender:
    function = importlib.import_module("mmcv.ops.multi_scale_deform_attn").MultiScaleDeformableAttnFunction

    def attend(inputs: Inputs) -> Tensor:
        sizes = torch.tensor(inputs.sizes, device=inputs.value.device)
        images = len(inputs.value)  # its chunks of the batch: all of it at once
        return function.apply(inputs.value, sizes, _starts(sizes), inputs.locations, inputs.weights, images)

    return Contender("mmcv", attend, _of_locations, devices=("cuda",))


def _deformops() -> Contender:
    function = importlib.import_module("deformops.registry").msda

    def attend(inputs: Inputs) -> Tensor:
        sizes, dtype = torch.tensor(inputs.sizes, device=inputs.value.device), inputs.value.dtype
        return function(inputs.value, sizes, _starts(sizes), inputs.locations.to(dtype), inputs.weights.to(dtype))

    return Contender("deformops", attend, _of_locations, _ANY, devices=("cuda",))


def _transformers() -> Contender:
    module = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    attention = module.MultiScaleDeformableAttention()

    def attend(inputs: Inputs) -> Tensor:
        sizes = torch.tensor(inputs.sizes, device=inputs.value.device)
        arguments = (inputs.value, sizes, list(inputs.sizes), _starts(sizes), inputs.locations, inputs.weights)
        return attention(*arguments, len(inputs.value))

    return Contender("transformers", attend, _of_locations)
