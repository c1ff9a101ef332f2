"""What both forms of deformable attention register with PyTorch beside their kernels, written once.

An operator takes (value, spatial_shapes, *samples) and returns (B, Q, H * C); its backward operator takes the gradient
of that before them and, behind them, which of the gradients of value and samples are asked for. The last of the samples
has shape (B, Q, H, L, P).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinox.ops import library
from dinox.ops.reference import accumulation_dtype


def register(
    name: str,
    *,
    reference: Callable[..., Tensor],
    reference_backward: Callable[..., Sequence[Tensor]],
    num_precise: int,
) -> torch.library.Library:
    """Register the operator ``dinox::name`` and ``dinox::name_backward`` for all backends.

    Fake kernels (torch.compile, torch.export), autograd, an autocast rule, and the references for devices without a
    compiled kernel. ``num_precise``: so many of the samples come first and are never below float32 under autocast.
    """
    operators = library.operators()
    forward, backward = (getattr(torch.ops.dinox, name + suffix) for suffix in ("", "_backward"))

    def run_reference(value: Tensor, *rest: Any) -> Tensor:
        library.log_reference(value.device.type)
        return reference(value, *rest)

    def run_reference_backward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, output_mask = arguments
        return _masked(reference_backward(*inputs), output_mask)

    def differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.saved_tensors)
        if ctx.sizes is not None:
            inputs.insert(1, ctx.sizes)
        needed = list(ctx.needs_input_grad[: len(inputs)])
        grad_value, *grads = backward(grad_output, *inputs, [needed[0], *needed[2:]])
        return grad_value, None, *grads

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{name}: gradients of gradients (create_graph=True) are not implemented")

    def autocast(device_type: str, value: Tensor, spatial_shapes: Any, *samples: Tensor) -> Tensor:
        precise = [tensor.to(accumulation_dtype(value)) for tensor in samples[:num_precise]]
        with torch.autocast(device_type, enabled=False):
            return forward(value, spatial_shapes, *precise, *samples[num_precise:])

    # Every device without a kernel of its own, the extension's devices excepted.
    operators.impl(name, run_reference, "CompositeExplicitAutograd")
    operators.impl(f"{name}_backward", run_reference_backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dinox::{name}", _fake, lib=operators)
    torch.library.register_fake(f"dinox::{name}_backward", _fake_backward, lib=operators)
    torch.library.register_autograd(f"dinox::{name}", differentiate, setup_context=_save_inputs, lib=operators)
    torch.library.register_autograd(f"dinox::{name}_backward", refuse, lib=operators)
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        operators.impl(name, functools.partial(autocast, device_type), key)
    return operators


def _masked(grads: Sequence[Tensor], output_mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(grad if wanted else None for grad, wanted in zip(grads, output_mask, strict=True))


def _fake(value: Tensor, spatial_shapes: Any, *samples: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, samples[-1].shape[1], heads * channels))


def _fake_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Any, *samples_and_mask: Any
) -> tuple[Tensor | None, ...]:
    *samples, output_mask = samples_and_mask
    return _masked([tensor.new_empty(tensor.shape) for tensor in (value, *samples)], output_mask)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.sizes = None if isinstance(inputs[1], Tensor) else inputs[1]  # a tensor in one form, numbers in the other
    ctx.save_for_backward(*(argument for argument in inputs if isinstance(argument, Tensor)))
