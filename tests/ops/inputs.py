"""Random inputs of the unfused operator and what tests of both forms do with them.

Legend: B images, S tokens, H heads, C channels per head, Q queries, L levels, P points.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dinox.ops import library

LEVELS = [(5, 7), (3, 4), (1, 1), (2, 1), (1, 3)]  # odd sizes, single rows, columns and pixels


class Inputs(NamedTuple):
    value: Tensor
    sizes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Values in a dtype, locations and weights in the one that goes with it."""
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        return Inputs(self.value.to(dtype), self.sizes, self.locations.to(precise), self.weights.to(precise))

    def on(self, device: str) -> "Inputs":
        return Inputs(self.value.to(device), self.sizes, self.locations.to(device), self.weights.to(device))

    @property
    def shapes(self) -> Tensor:
        return torch.tensor(self.sizes)


def make_inputs(sizes=LEVELS, *, images=2, heads=2, channels=8, queries=3, points=4, seed=0, margin=0.3) -> Inputs:
    """Float64 inputs; locations reach `margin` beyond the levels and avoid pixel centres, where gradients jump."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in sizes)
    value = torch.randn(images, tokens, heads, channels, generator=generator, dtype=torch.float64)
    shape = (images, queries, heads, len(sizes), points)
    locations = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * (1 + 2 * margin) - margin
    width_height = torch.tensor(sizes, dtype=torch.float64).flip(-1)[:, None]
    pixels = locations * width_height - 0.5
    pixels = torch.where((pixels - pixels.round()).abs() < 1e-2, pixels + 0.05, pixels)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Inputs(value, list(sizes), (pixels + 0.5) / width_height, weights)


def gradients(function, inputs: Inputs, sizes, grad: Tensor | None = None) -> list[Tensor]:
    """[output, grad_value, grad_locations, grad_weights] under one fixed gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (inputs.value, inputs.locations, inputs.weights)]
    output = function(leaves[0], sizes, leaves[1], leaves[2])
    if grad is None:
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output))]


def assert_all_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


class CallsOf(TorchDispatchMode):
    """Records the arguments of each call of an operator."""

    def __init__(self, operator: torch._ops.OpOverload) -> None:
        super().__init__()
        self.operator = operator
        self.arguments = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is self.operator:
            self.arguments.append(args)
        return operator(*args, **(kwargs or {}))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter: which backend there is, is decided once per process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=library.PACKAGE_FOLDER.parent,
    )
