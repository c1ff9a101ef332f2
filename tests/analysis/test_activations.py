import pytest
import torch
from torch import nn

from dinox.analysis import measure_activation_memory
from dinox.analysis.parts import BETWEEN
from tests.small_models import build_small, make_input


class Squares(nn.Module):
    """A part that keeps its input, of 4 bytes a number, and one that keeps nothing new."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.square, self.twice = Square(), Twice()

    def forward(self, inputs):
        x = inputs[0]["image"] + self.weight
        return {"loss": self.twice(self.square(x)).sum()}


class Square(nn.Module):
    def forward(self, x):
        return x * x + x.view(2, -1).square().sum()  # twice the same storage


class Twice(nn.Module):
    def forward(self, x):
        return x * 2


def test_a_storage_counts_once_for_the_part_that_first_keeps_it():
    memory = measure_activation_memory(Squares(), [{"image": torch.zeros(2, 50)}])
    assert memory.parts == {"square": 2 * 50 * 4}


def test_weights_and_images_do_not_count():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(100))

        def forward(self, inputs):
            return {"loss": (inputs[0]["image"] * self.weight).sum()}

    assert measure_activation_memory(Scaled(), [{"image": torch.zeros(100)}]).total == 0


def test_what_the_model_computes_itself_is_told_apart():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            return {"loss": (inputs[0]["image"] + self.weight).exp().sum()}

    assert measure_activation_memory(Bare(), [{"image": torch.zeros(10)}]).parts == {BETWEEN: 40}


def test_twice_the_images_take_twice_the_memory_of_the_backbone():
    model = build_small()
    one, two = (measure_activation_memory(model, [make_input(64, 96, 2)] * n) for n in (1, 2))
    assert one.parts["backbone"] > 0
    assert two.parts["backbone"] == pytest.approx(2 * one.parts["backbone"], rel=0.02)  # norms keep some constants
    assert one.total == sum(one.parts.values())


def test_half_precision_takes_less():
    model = build_small()
    full, half = (
        measure_activation_memory(model, [make_input(64, 96, 2)], precision=precision) for precision in ("fp32", "bf16")
    )
    assert half.parts["encoder"] < full.parts["encoder"]
