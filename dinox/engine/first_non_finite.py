"""Where NaN or infinity comes from: the first non-finite weight, input or output of a module, or gradient of a model.

All of it watches and stops nothing, so that ranks which run a model together stay together.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dinox.utils.tensors import tensors_in


class FirstNonFinite:
    """What came first, in words, since the watching began; ``where`` is None while everything is finite."""

    def __init__(self) -> None:
        self.where: str | None = None

    def look(self, place: str, value: Any) -> None:
        """``place``: what to call ``value``, anything that holds tensors."""
        if self.where is None:
            for path, tensor in tensors_in(value):
                if not all_finite(tensor):
                    self.where = f"{place}{f' ({path})' if path else ''}: {_counts(tensor)}"
                    return


@contextmanager
def watching_modules(model: nn.Module) -> Iterator[FirstNonFinite]:
    """Around a forward pass: which module is the first to give, or to be given, a number that is not finite.

    A module that gives one is told after those inside of it, so that it is the innermost one. One that is given one by
    code which is no module stands for that code. A loop over all modules that costs a look at every tensor between
    them: for a diagnosis. Code that torch.compile compiled runs no hooks; see ``dinox.utils.compat.run_eagerly``.
    """
    first = FirstNonFinite()
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            label = f"{name} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
            for handle in (
                module.register_forward_pre_hook(_look_at_inputs(first, label), with_kwargs=True),
                module.register_forward_hook(_look_at_output(first, label)),
            ):
                hooks.callback(handle.remove)
        yield first


def _look_at_inputs(first: FirstNonFinite, label: str) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        first.look(f"the input of {label}", [*args, kwargs])

    return hook


def _look_at_output(first: FirstNonFinite, label: str) -> Any:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        first.look(f"the output of {label}", output)

    return hook


@contextmanager
def watching_gradients(model: nn.Module) -> Iterator[FirstNonFinite]:
    """Around a backward pass: which parameter is the first to get a gradient that is not finite. Backward goes from the
    losses to the images, so what is wrong lies there or shortly after it in the forward pass."""
    first = FirstNonFinite()
    with ExitStack() as hooks:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hooks.callback(parameter.register_hook(_look_at_gradient(first, name)).remove)
        yield first


def _look_at_gradient(first: FirstNonFinite, name: str) -> Any:
    def hook(gradient: Tensor) -> None:
        first.look(f"the gradient of {name}", gradient)

    return hook


def first_non_finite_weight(model: nn.Module) -> str | None:
    """A parameter or a buffer, in words."""
    first = FirstNonFinite()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        first.look(f"the weight {name}", tensor)
    return first.where


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose ``grad`` is not finite, in the model's order."""
    return [name for name, each in model.named_parameters() if each.grad is not None and not all_finite(each.grad)]


def all_finite(tensor: Tensor) -> bool:
    """Of a tensor that is spread over ranks, this rank's part. True for whole numbers."""
    tensor = _own_part(tensor.detach())
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor).all())


def _own_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _counts(tensor: Tensor) -> str:
    tensor = _own_part(tensor.detach())
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    parts = [f"{number} {word}" for number, word in ((nan, "NaN"), (infinite, "infinite")) if number]
    return f"{' and '.join(parts)} of {tensor.numel()} values"
