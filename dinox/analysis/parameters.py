"""Whose parameters learn, and which of them detection needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dinox.analysis.modes import in_mode


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; FrozenBatchNorm's constants are buffers and not counted.

    trainable: those with a gradient. frozen: those without (a pretrained stem). total: both. training_only: the share
    of ``total`` that detection never reads (denoising's label embedding, auxiliary heads).
    """

    trainable: int
    frozen: int
    training_only: int

    @property
    def total(self) -> int:
        return self.trainable + self.frozen


def count_parameters(module: nn.Module) -> int:
    """All parameters, frozen ones included; FrozenBatchNorm's constants are buffers and not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_parameters_by_part(model: nn.Module, inputs: list[dict]) -> dict[str, ParameterCounts]:
    """Parameters of the model's children, by name, and under "" those of the whole model.

    The model detects once on ``inputs``, to see which parameters it reads.
    """
    needed = parameters_read_in_detection(model, inputs)
    parts = ["", *(name for name, _ in model.named_children())]
    return {part: _count(model.get_submodule(part), needed) for part in parts}


def parameters_read_in_detection(model: nn.Module, inputs: list[dict]) -> set[nn.Parameter]:
    """Every parameter that is an argument of some torch function while the model detects on ``inputs``."""
    with in_mode(model, training=False), torch.no_grad(), _ParameterReads() as reads:
        model(inputs)
    return reads.parameters


def _count(module: nn.Module, needed: set[nn.Parameter]) -> ParameterCounts:
    parameters = list(module.parameters())
    return ParameterCounts(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        training_only=sum(p.numel() for p in parameters if p not in needed),
    )


class _ParameterReads(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.parameters: set[nn.Parameter] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.parameters.update(p for p in _leaves([*args, *kwargs.values()]) if isinstance(p, nn.Parameter))
        return function(*args, **kwargs)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value
