"""The fused operator against its reference, which is the unfused one behind a softmax and the sum of offsets.

Legend: B images, S tokens, H heads, C channels per head, Q queries, L levels, P points.
"""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dinox.ops import (
    backend,
    library,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    sampling_locations,
)
from dinox.ops.reference import ms_deform_attn_fused_reference_backward
from tests.ops.inputs import LEVELS, CallsOf, assert_all_close, run_python

FUSED = torch.ops.dinox.ms_deform_attn_fused.default
BACKWARD = torch.ops.dinox.ms_deform_attn_fused_backward.default


class Raw(NamedTuple):
    value: Tensor
    references: Tensor
    offsets: Tensor
    logits: Tensor

    def to(self, value: torch.dtype, raw: torch.dtype | None = None) -> "Raw":
        """Values in one dtype, offsets and logits in another, references in the one that goes with value."""
        precise = torch.float64 if value == torch.float64 else torch.float32
        raw = precise if raw is None else raw
        return Raw(self.value.to(value), self.references.to(precise), self.offsets.to(raw), self.logits.to(raw))


def make_raw(sizes=LEVELS, *, reference_size=2, images=2, heads=2, channels=8, queries=3, points=4, seed=0) -> Raw:
    """Float64 inputs; some samples lie beyond the levels, none near a pixel centre, where gradients jump."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    references = torch.rand(images, queries, len(sizes), reference_size, generator=generator, dtype=torch.float64)
    if reference_size == 4:
        references[..., 2:] = references[..., 2:] * 0.5 + 0.2
    offsets = draw(images, queries, heads, len(sizes), points, 2) * 2
    shapes = torch.tensor(sizes)
    width_height = shapes.flip(-1)[:, None].double()
    pixels = sampling_locations(references, offsets, shapes) * width_height - 0.5
    unit = sampling_locations(references, offsets + 1, shapes) * width_height - 0.5 - pixels  # pixels per offset
    offsets = torch.where((pixels - pixels.round()).abs() < 1e-2, offsets + 0.05 / unit, offsets)
    tokens = sum(height * width for height, width in sizes)
    logits = draw(images, queries, heads, len(sizes), points) * 3
    return Raw(draw(images, tokens, heads, channels), references, offsets, logits)


def gradients(function, raw: Raw, sizes, grad: Tensor | None = None) -> list[Tensor]:
    """[output, gradients of value, references, offsets, logits] under one fixed gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in raw]
    output = function(leaves[0], sizes, *leaves[1:])
    if grad is None:
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output))]


def in_parts(value: Tensor, sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """What the fused operator stands for, through the unfused one."""
    locations = sampling_locations(references, offsets, torch.tensor(sizes))
    return ms_deform_attn(value, sizes, locations, logits.flatten(-2).softmax(-1).view(logits.shape))


def test_offsets_count_cells_for_points_and_half_sizes_for_boxes():
    offsets, shapes = torch.ones(1, 1, 1, 2, 3, 2), torch.tensor([(4, 6), (2, 3)])
    at_points = sampling_locations(torch.full((1, 1, 2, 2), 0.5), offsets, shapes)
    torch.testing.assert_close(at_points[0, 0, 0, :, 0], torch.tensor([[0.5 + 1 / 6, 0.75], [0.5 + 1 / 3, 1.0]]))
    boxes = torch.tensor([0.5, 0.5, 0.6, 0.3]).expand(1, 1, 2, 4)
    at_boxes = sampling_locations(boxes, offsets, shapes)
    torch.testing.assert_close(at_boxes[0, 0, 0, 0, 0], torch.tensor([0.5 + 0.3 / 3, 0.5 + 0.15 / 3]))


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("num_levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("channels", "points"), [(1, 4), (8, 8), (30, 4), (32, 1), (64, 3)])
def test_it_equals_its_parts_in_float64(reference_size, num_levels, channels, points):
    sizes = LEVELS[:num_levels]
    raw = make_raw(sizes, reference_size=reference_size, channels=channels, points=points)
    expected = gradients(in_parts, raw, sizes)
    # Sums of products of order 1 in another order: a few hundred roundings of 1e-16.
    assert_all_close(gradients(ms_deform_attn_fused, raw, sizes), expected, 1e-11)
    assert_all_close(
        gradients(lambda v, s, *rest: ms_deform_attn_fused_reference(v, torch.tensor(s), *rest), raw, sizes),
        expected,
        1e-11,
    )


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("queries", [2, 300], ids=["fewer samples than tokens", "more samples than tokens"])
@pytest.mark.parametrize("channels", [8, 16, 30, 32, 48, 100])
def test_it_equals_its_parts_in_float32(channels, queries, reference_size):
    sizes = [(13, 11), (7, 6), (3, 3)]
    raw = make_raw(sizes, channels=channels, queries=queries, reference_size=reference_size)
    expected = gradients(in_parts, raw, sizes)
    actual = gradients(ms_deform_attn_fused, raw.to(torch.float32), sizes)
    for got, want in zip(actual, expected, strict=True):
        scale = want.abs().max()
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [8, 32, 40])
@pytest.mark.parametrize("queries", [2, 300])
def test_lower_precision_is_read_as_it_is_and_summed_in_float32(dtype, channels, queries):
    sizes = [(13, 11), (7, 6), (3, 3)]
    raw = make_raw(sizes, channels=channels, queries=queries).to(dtype, dtype)
    grad = torch.randn(2, queries, 2 * channels, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact = gradients(in_parts, raw.to(torch.float64), sizes, grad)
    actual = gradients(ms_deform_attn_fused, raw, sizes, grad)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32, dtype, dtype]
    rounding = torch.finfo(dtype).eps  # one rounding of each result
    for got, want in zip(actual, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=2e-4 * want.abs().max().item())


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set_computes_the_same(isa):
    if backend("cpu") != "extension":
        pytest.skip(f"no compiled kernel: {library.why_reference('cpu')}")
    code = """
from tests.ops.test_fused import *
for channels in (8, 32, 100):
    test_it_equals_its_parts_in_float32(channels, 300, 4)
    test_it_equals_its_parts_in_float32(channels, 2, 2)
test_it_equals_its_parts_in_float64(4, 5, 30, 4)
test_lower_precision_is_read_as_it_is_and_summed_in_float32(torch.bfloat16, 40, 300)
test_lower_precision_is_read_as_it_is_and_summed_in_float32(torch.float16, 32, 300)
print("equal")
"""
    result = run_python(code, DINOX_CPU_ISA=isa)
    if f"this CPU has no {isa}" in result.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert "equal" in result.stdout, result.stderr


def test_reference_backward_equals_its_autograd():
    raw, shapes = make_raw(reference_size=4), torch.tensor(LEVELS)
    grad = torch.randn(2, 3, 16, dtype=torch.float64)
    by_hand = ms_deform_attn_fused_reference_backward(grad, raw.value, shapes, *raw[1:])
    by_autograd = gradients(ms_deform_attn_fused_reference, raw, shapes, grad)[1:]
    assert_all_close(list(by_hand), by_autograd, 1e-12)


@pytest.mark.parametrize("reference_size", [2, 4])
def test_gradcheck(reference_size):
    raw = make_raw(LEVELS[:3], channels=3, queries=2, points=2, images=1, reference_size=reference_size)
    leaves = [tensor.requires_grad_() for tensor in raw]
    assert torch.autograd.gradcheck(lambda v, *rest: ms_deform_attn_fused(v, LEVELS[:3], *rest), leaves)


def test_threads_change_no_bit():
    sizes = [(19, 17), (8, 9), (4, 4)]
    raw = make_raw(sizes, channels=32, queries=700).to(torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(ms_deform_attn_fused, raw, sizes))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_great_and_equal_logits_are_no_problem():
    raw = make_raw()
    for logits in (raw.logits * 1e4, torch.full_like(raw.logits, -1e30), raw.logits + 1e4):
        extreme = raw._replace(logits=logits)
        expected = gradients(in_parts, extreme, LEVELS)
        actual = gradients(ms_deform_attn_fused, extreme.to(torch.float32), LEVELS)
        for got, want in zip(actual, expected, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3 * max(1, want.abs().max().item()))


def test_samples_that_are_nowhere_give_nothing_and_get_no_gradient():
    raw = make_raw().to(torch.float32)
    raw.offsets[0, 0, 0, 0, 0, 0] = float("nan")
    raw.offsets[0, 1, 0, 0, 0, 1] = float("inf")
    raw.offsets[1, 0, 1, 2, 3, 0] = -1e30
    output, *grads = gradients(ms_deform_attn_fused, raw, LEVELS)
    assert output.isfinite().all()
    assert all(grad.isfinite().all() for grad in (grads[0], grads[1], grads[3]))
    assert (grads[2][0, 0, 0, 0, 0] == 0).all()
    assert (grads[2][1, 0, 1, 2, 3] == 0).all()


@pytest.mark.parametrize("empty", [{"queries": 0}, {"images": 0}, {"heads": 0}, {"channels": 0}])
def test_empty_dimensions(empty):
    raw = make_raw(**empty).to(torch.float32)
    output, *grads = gradients(ms_deform_attn_fused, raw, LEVELS)
    assert output.numel() == 0
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in raw]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("queries", [2, 300], ids=["fewer samples than tokens", "more samples than tokens"])
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=4)))
def test_gradients_of_some_inputs_only(mask, queries):
    value, *rest = make_raw(channels=16, queries=queries, reference_size=4).to(torch.float32)
    flat = [side for size in LEVELS for side in size]
    grad = torch.randn(2, queries, 32, generator=torch.Generator().manual_seed(7))
    complete = BACKWARD(grad, value, flat, *rest, [True] * 4)
    for got, wanted, expected in zip(BACKWARD(grad, value, flat, *rest, mask), mask, complete, strict=True):
        assert torch.equal(got, expected) if wanted else got is None


def test_autograd_asks_only_for_the_gradients_that_are_needed():
    value, references, offsets, logits = make_raw()
    output = ms_deform_attn_fused(value.requires_grad_(), LEVELS, references, offsets.requires_grad_(), logits)
    with CallsOf(BACKWARD) as calls:
        output.sum().backward()
    assert [arguments[-1] for arguments in calls.arguments] == [[True, False, True, False]]


@pytest.mark.parametrize("queries", [2, 300])
def test_inputs_need_not_be_contiguous(queries):
    raw = make_raw(channels=32, queries=queries, reference_size=4).to(torch.float32)
    expected = gradients(ms_deform_attn_fused, raw, LEVELS)
    scattered = Raw(*(tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in raw))
    assert_all_close(gradients(ms_deform_attn_fused, scattered, LEVELS), expected, 0)


@pytest.mark.parametrize(("dtype", "reference_size"), [(torch.float32, 2), (torch.bfloat16, 4)])
def test_opcheck(dtype, reference_size):
    raw = make_raw(queries=2, reference_size=reference_size).to(dtype, dtype)
    flat = [side for size in LEVELS for side in size]
    value, *rest = (tensor.requires_grad_() for tensor in raw)
    torch.library.opcheck(FUSED, (value, flat, *rest))
    grad = torch.randn(2, 2, 16).to(dtype)
    tensors = [tensor.detach() for tensor in (value, *rest)]
    for mask in ([True] * 4, [True, False, True, True], [False, True, False, False]):
        torch.library.opcheck(BACKWARD, (grad, tensors[0], flat, *tensors[1:], mask))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_break_for_changing_sizes(compiler):
    def attend(value, sizes, *rest):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = ms_deform_attn_fused(value.bfloat16(), sizes, *rest)
        return ms_deform_attn_fused(value * 2, sizes, *rest) + mixed.float()

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=compiler)
    for sizes in (LEVELS[:2], [(6, 5), (2, 3)]):
        raw = make_raw(sizes, channels=4, queries=2, images=1).to(torch.float32)
        assert_all_close(gradients(compiled, raw, sizes), gradients(attend, raw, sizes), 1e-5)


def test_exports():
    class Attention(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return ms_deform_attn_fused(tensors[0], LEVELS, *tensors[1:])

    raw = make_raw().to(torch.float32)
    exported = torch.export.export(Attention(), tuple(raw))
    assert_all_close([exported.module()(*raw)], [Attention()(*raw)], 0)


def test_autocast_raises_references_to_float32():
    raw = make_raw().to(torch.bfloat16, torch.bfloat16)
    coarse = raw._replace(references=raw.references.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = FUSED(coarse.value, [side for size in LEVELS for side in size], *coarse[1:])
    fine = raw._replace(references=coarse.references.float())
    assert torch.equal(mixed, ms_deform_attn_fused(fine.value, LEVELS, *fine[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 53, 16)}, r"value: expected 4 dimensions"),
        ({"offsets": torch.zeros(2, 3, 2, 5, 4)}, r"sampling_offsets: expected 6 dimensions .*, got \(2, 3, 2, 5, 4\)"),
        ({"offsets": torch.zeros(2, 3, 2, 5, 4, 2).int()}, r"sampling_offsets: expected a floating point dtype"),
        ({"logits": torch.zeros(2, 3, 2, 20)}, r"attention_logits: expected shape \(B, Q, H, L, P\) = .*, got"),
        ({"logits": torch.zeros(2, 3, 2, 5, 4).to("meta")}, r"attention_logits: expected device cpu .*, got meta"),
        ({"references": torch.zeros(2, 3, 5, 3)}, r"reference_points: expected shape \(B, Q, L, 2\) or \(B, Q, L, 4\)"),
        ({"references": torch.zeros(2, 3, 4, 2)}, r"reference_points: expected shape .* = \(2, 3, 5, 2\), got"),
        ({"sizes": torch.tensor(LEVELS)}, r"spatial_shapes: expected a sequence of \(height, width\)"),
        ({"sizes": []}, r"spatial_shapes: expected at least one level"),
        ({"sizes": [(5, 7), (3, 4), (1, 1), (2, 1), (1, 4)]}, r"add up to the 53 tokens of value, got 54"),
    ],
)
def test_errors_name_the_argument_what_was_expected_and_what_came(change, message):
    raw, sizes = make_raw().to(torch.float32), change.pop("sizes", LEVELS)
    raw = raw._replace(**change)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn_fused(raw.value, sizes, *raw[1:])
