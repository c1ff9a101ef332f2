"""What PyTorch is told about the operator: which gradients it has, and what tracers and autocast see of it."""

import itertools

import pytest
import torch
from torch import Tensor

from dinox.ops import ms_deform_attn
from tests.ops.inputs import LEVELS, CallsOf, assert_all_close, gradients, make_inputs

OPERATOR = torch.ops.dinox.ms_deform_attn.default
BACKWARD = torch.ops.dinox.ms_deform_attn_backward.default


# ---------------------------------------------------------------- autograd


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [2, 300], ids=["fewer samples than tokens", "more samples than tokens"])
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=3)))
def test_gradients_of_some_inputs_only(mask, queries, dtype):
    value, sizes, *samples = make_inputs(channels=16, queries=queries).to(dtype)
    grad = torch.randn(2, queries, 32, generator=torch.Generator().manual_seed(7)).to(dtype)
    complete = BACKWARD(grad, value, torch.tensor(sizes), *samples, [True] * 3)
    for got, wanted, expected in zip(
        BACKWARD(grad, value, torch.tensor(sizes), *samples, mask), mask, complete, strict=True
    ):
        assert torch.equal(got, expected) if wanted else got is None


def test_autograd_asks_only_for_the_gradients_that_are_needed():
    inputs = make_inputs()
    value = inputs.value.requires_grad_()
    output = ms_deform_attn(value, inputs.shapes, inputs.locations, inputs.weights)
    with CallsOf(BACKWARD) as calls:
        output.sum().backward()
    assert [arguments[-1] for arguments in calls.arguments] == [[True, False, False]]
    _, grad_value, _, _ = gradients(ms_deform_attn, inputs, inputs.shapes, torch.ones(2, 3, 16))
    assert torch.equal(value.grad, grad_value)


def test_gradients_of_gradients_are_refused():
    inputs = make_inputs()
    value = inputs.value.requires_grad_()
    output = ms_deform_attn(value, inputs.shapes, inputs.locations, inputs.weights)
    (grad,) = torch.autograd.grad((output**2).sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        grad.sum().backward()


# ---------------------------------------------------------------- tracing and autocast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    inputs = make_inputs(queries=2).to(dtype)
    tensors = [inputs.value, inputs.locations, inputs.weights]
    value, locations, weights = (tensor.requires_grad_() for tensor in tensors)
    torch.library.opcheck(OPERATOR, (value, inputs.shapes, locations, weights))
    grad = torch.randn(2, 2, 16).to(dtype)
    for mask in ([True, True, True], [False, True, False]):
        torch.library.opcheck(
            BACKWARD, (grad, value.detach(), inputs.shapes, locations.detach(), weights.detach(), mask)
        )


def attend_in_all_ways(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    by_pairs = ms_deform_attn(value * 2, sizes, locations, weights)
    by_tensor = ms_deform_attn(value, torch.tensor(sizes), locations, weights.softmax(-1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ms_deform_attn(value.bfloat16(), sizes, locations, weights)
    return by_pairs + by_tensor + mixed.float()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_break_for_changing_sizes(compiler):
    compiled = torch.compile(attend_in_all_ways, fullgraph=True, dynamic=True, backend=compiler)
    for sizes in (LEVELS[:2], [(6, 5), (2, 3)]):
        inputs = make_inputs(sizes, channels=4, queries=2, images=1).to(torch.float32)
        expected = gradients(attend_in_all_ways, inputs, sizes)
        assert_all_close(gradients(compiled, inputs, sizes), expected, 1e-5)


def test_compiles_without_graph_break_with_shapes_in_a_tensor():
    inputs = make_inputs(channels=4, queries=2, images=1).to(torch.float32)
    compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager")
    expected = gradients(ms_deform_attn, inputs, inputs.shapes)
    assert_all_close(gradients(compiled, inputs, inputs.shapes), expected, 1e-5)


def test_exports():
    class Attention(torch.nn.Module):
        def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value, LEVELS, locations, weights)

    inputs = make_inputs().to(torch.float32)
    tensors = (inputs.value, inputs.locations, inputs.weights)
    exported = torch.export.export(Attention(), tensors)
    assert_all_close([exported.module()(*tensors)], [Attention()(*tensors)], 0)


def test_shapes_without_data():
    inputs = make_inputs().to(torch.bfloat16).on("meta")
    output = ms_deform_attn(inputs.value, inputs.sizes, inputs.locations, inputs.weights)
    assert (output.device.type, output.shape, output.dtype) == ("meta", (2, 3, 16), torch.bfloat16)


def test_autocast_keeps_values_and_raises_coordinates_to_float32():
    inputs = make_inputs().to(torch.bfloat16)
    expected = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations.bfloat16().float(), inputs.weights)
    with torch.autocast("cpu", torch.bfloat16):
        public = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations.bfloat16(), inputs.weights)
        direct = OPERATOR(inputs.value, inputs.shapes, inputs.locations.bfloat16(), inputs.weights)
        full = ms_deform_attn(inputs.value.float(), inputs.shapes, inputs.locations, inputs.weights)
    assert torch.equal(public, expected)
    assert torch.equal(direct, expected)
    assert full.dtype == torch.float32
