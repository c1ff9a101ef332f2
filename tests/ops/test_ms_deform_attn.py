"""The operator against loops and against its reference; each backend that this machine has.

Legend: B images, S tokens, H heads, C channels per head, Q queries, L levels, P points.
"""

import pytest
import torch
from torch import Tensor

from dinox.ops import backend, library, ms_deform_attn, ms_deform_attn_reference
from dinox.ops.reference import ms_deform_attn_reference_backward
from tests.ops.inputs import LEVELS, Inputs, assert_all_close, gradients, make_inputs, run_python
from tests.ops.naive import naive_ms_deform_attn

OPERATOR = torch.ops.dinox.ms_deform_attn.default
BACKWARD = torch.ops.dinox.ms_deform_attn_backward.default


# ---------------------------------------------------------------- the same numbers everywhere


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("channels", "points"), [(1, 4), (8, 8), (30, 4), (32, 1), (64, 1)])
def test_operator_and_reference_equal_the_loops_in_float64(num_levels, channels, points):
    inputs = make_inputs(LEVELS[:num_levels], channels=channels, points=points, images=1)
    expected = gradients(naive_ms_deform_attn, inputs, inputs.sizes)
    assert_all_close(gradients(ms_deform_attn_reference, inputs, inputs.shapes), expected, 1e-11)
    assert_all_close(gradients(ms_deform_attn, inputs, inputs.sizes), expected, 1e-11)


@pytest.mark.parametrize("channels", [1, 8, 16, 30, 32, 48, 64, 100, 256])
@pytest.mark.parametrize("queries", [2, 300], ids=["fewer samples than tokens", "more samples than tokens"])
def test_operator_equals_reference_in_float32(channels, queries):
    sizes = [(13, 11), (7, 6), (3, 3)]
    inputs = make_inputs(sizes, channels=channels, queries=queries)
    expected = gradients(ms_deform_attn_reference, inputs, inputs.shapes)
    actual = gradients(ms_deform_attn, inputs.to(torch.float32), inputs.shapes)
    scale = max(tensor.abs().max().item() for tensor in expected)
    assert_all_close([tensor / scale for tensor in actual], [tensor / scale for tensor in expected], 2e-6)


@pytest.mark.parametrize("queries", [2, 300], ids=["fewer samples than tokens", "more samples than tokens"])
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("images", [1, 3])
def test_numbers_of_images_and_heads(images, heads, queries):
    sizes = [(13, 11), (7, 6), (3, 3)]
    inputs = make_inputs(sizes, images=images, heads=heads, channels=32, queries=queries)
    expected = gradients(ms_deform_attn_reference, inputs, inputs.shapes)
    actual = gradients(ms_deform_attn, inputs.to(torch.float32), inputs.shapes)
    scale = max(tensor.abs().max().item() for tensor in expected)
    assert_all_close([tensor / scale for tensor in actual], [tensor / scale for tensor in expected], 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [8, 32])
def test_half_precision_values_are_accumulated_in_float32(dtype, channels):
    inputs = make_inputs(channels=channels, queries=40).to(dtype)
    grad = torch.randn(2, 40, 2 * channels, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact = gradients(ms_deform_attn_reference, inputs.to(torch.float64), inputs.shapes, grad)
    actual = gradients(ms_deform_attn, inputs, inputs.shapes, grad)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32, torch.float32]
    rounding = torch.finfo(dtype).eps  # one rounding of each result, not one of each sum
    for got, want in zip(actual[:2], exact[:2], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=1e-4)
    assert_all_close(actual[2:], exact[2:], 1e-4)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set_computes_the_same(isa):
    if backend("cpu") != "extension":
        pytest.skip(f"no compiled kernel: {library.why_reference('cpu')}")
    code = """
import torch
from tests.ops.test_ms_deform_attn import *
sizes = [(13, 11), (7, 6), (3, 3)]
for channels, queries in [(8, 2), (32, 2), (32, 300), (100, 300)]:
    for dtype, tolerance in [(torch.float64, 1e-10), (torch.float32, 5e-4)]:
        inputs = make_inputs(sizes, channels=channels, queries=queries)
        expected = gradients(ms_deform_attn_reference, inputs, inputs.shapes)
        assert_all_close(gradients(ms_deform_attn, inputs.to(dtype), inputs.shapes), expected, tolerance)
print("equal")
"""
    result = run_python(code, DINOX_CPU_ISA=isa)
    if f"this CPU has no {isa}" in result.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert "equal" in result.stdout, result.stderr


def test_reference_backward_equals_its_autograd():
    inputs = make_inputs()
    inputs.locations[0, 0, 0, 0, 0] = float("nan")
    grad = torch.randn(2, 3, 16, dtype=torch.float64)
    by_hand = ms_deform_attn_reference_backward(grad, inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    assert_all_close(list(by_hand), gradients(ms_deform_attn_reference, inputs, inputs.shapes, grad)[1:], 1e-12)


@pytest.mark.parametrize("channels", [3, 8])
def test_gradcheck(channels):
    inputs = make_inputs(LEVELS[:3], channels=channels, queries=2, points=2, images=1)
    leaves = [tensor.requires_grad_() for tensor in (inputs.value, inputs.locations, inputs.weights)]
    assert torch.autograd.gradcheck(lambda v, x, w: ms_deform_attn(v, inputs.sizes, x, w), leaves)


def test_threads_change_no_bit():
    inputs = make_inputs([(19, 17), (8, 9), (4, 4)], channels=32, queries=700).to(torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(ms_deform_attn, inputs, inputs.shapes))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# ---------------------------------------------------------------- borders


def sample_one(x: float, y: float, sizes=((4, 8),), dtype=torch.float64) -> list[Tensor]:
    """[output, gradients] of one sample with weight 1 at pixel (x, y) of the first of levels of ones, 1 channel."""
    tokens = sum(height * width for height, width in sizes)
    height, width = sizes[0]
    location = torch.tensor([(x + 0.5) / width, (y + 0.5) / height], dtype=torch.float64)
    locations = torch.full((1, 1, 1, len(sizes), 1, 2), -9.0, dtype=torch.float64)
    locations[0, 0, 0, 0, 0] = location
    inputs = Inputs(torch.ones(1, tokens, 1, 1), list(sizes), locations, torch.ones(1, 1, 1, len(sizes), 1)).to(dtype)
    results = gradients(ms_deform_attn, inputs, list(sizes), torch.ones(1, 1, 1))
    reference = gradients(ms_deform_attn_reference, inputs, inputs.shapes, torch.ones(1, 1, 1))
    assert_all_close(results, reference, 1e-6)
    return results


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, 1.0),  # centres of corner pixels
        (7, 3, 1.0),
        (-0.5, 1, 0.5),  # the border of the image: half of the sample is outside
        (7.5, 1, 0.5),
        (-0.5, -0.5, 0.25),
        (-0.875, 2, 0.125),
        (7.875, 3.875, 0.125 * 0.125),
    ],
)
def test_pixels_beyond_a_level_are_zeros(x, y, expected, dtype):
    assert sample_one(x, y, dtype=dtype)[0].item() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("x", [-1, 8, -1.5, 100, -1e6, 1e30, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("swap", [False, True], ids=["x", "y"])
def test_samples_that_do_not_count_give_nothing_and_get_no_gradient(x, swap, dtype):
    x, y = (0, x if x != 8 else 4) if swap else (x, 0)
    output, *grads = sample_one(x, y, dtype=dtype)
    assert output.item() == 0
    assert all((grad == 0).all() for grad in grads)


def test_a_sample_that_does_not_count_gives_nothing_whatever_its_weight():
    inputs = make_inputs()
    inputs.locations[0, 0, 0, 0, 0] = float("nan")
    clean = gradients(ms_deform_attn, inputs, inputs.shapes)
    inputs.weights[0, 0, 0, 0, 0] = float("nan")
    assert_all_close(gradients(ms_deform_attn, inputs, inputs.shapes), clean, 0)
    assert_all_close(gradients(ms_deform_attn_reference, inputs, inputs.shapes), clean, 1e-11)


def test_a_sample_reads_no_other_level_row_image_or_head():
    value = torch.full((3, 4 + 6 + 2, 3, 5), float("nan"))
    level, head = slice(4, 10), 1
    value[1, level, head] = 1.0
    for x, y in [(-0.75, -0.75), (2.75, 1.75), (-0.75, 1.75), (2.75, -0.75), (1.5, -0.5), (-0.5, 0.5)]:
        locations = torch.full((3, 1, 3, 3, 1, 2), -9.0)
        locations[1, 0, head, 1, 0] = torch.tensor([(x + 0.5) / 3, (y + 0.5) / 2])
        output = ms_deform_attn(value, [(2, 2), (2, 3), (1, 2)], locations, torch.ones(3, 1, 3, 3, 1))
        assert output.isfinite().all()
        assert output[1, 0, 5:10].gt(0).all()


@pytest.mark.parametrize("channels", [8, 32])
def test_random_bit_patterns_as_locations_are_safe(channels):
    bits = torch.randint(-(2**31), 2**31, (2, 200, 2, 5, 4, 2), generator=torch.Generator().manual_seed(0))
    locations = bits.to(torch.int32).view(torch.float32)
    inputs = make_inputs(channels=channels, queries=200).to(torch.float32)._replace(locations=locations)
    actual = gradients(ms_deform_attn, inputs, inputs.shapes)
    assert all(tensor.isfinite().all() for tensor in actual)
    assert_all_close(
        actual[:1], [ms_deform_attn_reference(inputs.value, inputs.shapes, locations, inputs.weights)], 1e-5
    )


# ---------------------------------------------------------------- shapes and layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "empty",
    [{"queries": 0}, {"images": 0}, {"heads": 0}, {"channels": 0}, {"points": 0}],
    ids=lambda empty: next(iter(empty)),
)
def test_empty_dimensions(empty, dtype):
    inputs = make_inputs(**empty).to(dtype)
    output, *grads = gradients(ms_deform_attn, inputs, inputs.sizes)
    batch, queries, heads = inputs.locations.shape[:3]
    assert output.shape == (batch, queries, heads * inputs.value.shape[-1])
    assert not output.any()
    assert [grad.shape for grad in grads] == [inputs.value.shape, inputs.locations.shape, inputs.weights.shape]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("queries", [2, 300])
def test_inputs_need_not_be_contiguous_or_aligned(queries):
    inputs = make_inputs(channels=32, queries=queries).to(torch.float32)
    expected = gradients(ms_deform_attn, inputs, inputs.shapes)

    def scattered(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    def misaligned(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    for change in (scattered, misaligned):
        leaves = [
            change(tensor.detach()).requires_grad_() for tensor in (inputs.value, inputs.locations, inputs.weights)
        ]
        shapes = inputs.shapes.flip(-1).contiguous().flip(-1)
        output = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(output)
        grads = torch.autograd.grad(output, leaves, change(grad))
        assert_all_close([output.detach(), *grads], expected, 0 if backend("cpu") == "extension" else 1e-4)


def test_a_gradient_that_is_not_finite_stays_where_it_belongs():
    """Pixels beyond the level are zeros, not zeros times infinity; samples that are nowhere get no gradient."""
    inputs = make_inputs().to(torch.float32)
    inputs.locations[:, 1] = torch.nan
    grad = torch.full((2, 3, 16), torch.inf)
    _, grad_value, grad_locations, grad_weights = gradients(ms_deform_attn, inputs, inputs.sizes, grad)
    assert not grad_locations[:, 1].any()
    assert not grad_weights[:, 1].any()
    untouched = gradients(ms_deform_attn, inputs, inputs.sizes, torch.ones(2, 3, 16))[1] == 0
    assert torch.equal(grad_value[untouched], torch.zeros_like(grad_value[untouched]))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 53, 16)}, r"value: expected 4 dimensions \(B, S, H, C\), got \(2, 53, 16\)"),
        ({"value": torch.zeros(2, 53, 2, 8).long()}, r"value: expected float32.* got torch.int64"),
        ({"value": torch.zeros(2, 50, 2, 8)}, r"spatial_shapes: expected .*add up to the 50 tokens of value, got 53"),
        ({"sizes": [5, 7]}, r"spatial_shapes: expected a sequence of \(height, width\), got \[5, 7\]"),
        ({"sizes": [(5, 7, 1)]}, r"spatial_shapes: expected a sequence of \(height, width\), got \[\(5, 7, 1\)\]"),
        ({"sizes": []}, r"spatial_shapes: expected shape \(L, 2\) with at least one level, got \(0, 2\)"),
        (
            {"sizes": [(5, 7), (3, 4), (-1, -1), (2, 1), (1, 3)]},
            r"spatial_shapes: expected positive heights and widths.*-1",
        ),
        ({"sizes": torch.tensor([5, 7])}, r"spatial_shapes: expected shape \(L, 2\).* got \(2,\)"),
        (
            {"sizes": torch.tensor(LEVELS).int()},
            r"spatial_shapes: expected an int64 tensor on the CPU.* got torch.int32 on cpu",
        ),
        ({"sizes": torch.tensor(LEVELS).to("meta")}, r"spatial_shapes: expected an int64 tensor on the CPU.* on meta"),
        (
            {"locations": torch.zeros(2, 3, 2, 5, 4)},
            r"sampling_locations: expected 6 dimensions .*, got \(2, 3, 2, 5, 4\)",
        ),
        (
            {"locations": torch.zeros(2, 3, 2, 4, 4, 2)},
            r"sampling_locations: expected shape \(B, Q, H, L, P, 2\) = \(2, 3, 2, 5, 4, 2\), got \(2, 3, 2, 4, 4, 2\)",
        ),
        (
            {"locations": torch.zeros(2, 3, 2, 5, 4, 2).int()},
            r"sampling_locations: expected a floating point .* torch.int32",
        ),
        (
            {"locations": torch.zeros(2, 3, 2, 5, 4, 2).to("meta")},
            r"sampling_locations: expected device cpu .*, got meta",
        ),
        (
            {"weights": torch.zeros(2, 3, 2, 20)},
            r"attention_weights: expected shape \(B, Q, H, L, P\) = .*, got \(2, 3, 2, 20\)",
        ),
        ({"weights": torch.zeros(2, 3, 2, 5, 4).bool()}, r"attention_weights: expected a floating point .* torch.bool"),
    ],
)
def test_errors_name_the_argument_what_was_expected_and_what_came(change, message):
    inputs = make_inputs().to(torch.float32)._replace(**change)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(inputs.value, inputs.sizes, inputs.locations, inputs.weights)


@pytest.mark.parametrize(
    ("position", "tensor"),
    [
        (0, torch.zeros(53, 2, 8)),
        (0, torch.zeros(2, 54, 2, 8)),
        (0, torch.zeros(2, 53, 2, 8).double()),
        (1, torch.tensor(LEVELS).int()),
        (1, torch.tensor([(2**32, 2**32)] + LEVELS[1:])),
        (1, torch.tensor([(53, 53)] * 5)),
        (1, torch.tensor(LEVELS).t()),
        (2, torch.zeros(2, 3, 2, 5, 3, 2)),
        (2, torch.zeros(2, 3, 2, 5, 4, 2).half()),
        (3, torch.zeros(2, 3, 2, 5, 3)),
        (3, torch.zeros(2, 3, 2, 5, 4).double()),
    ],
)
def test_direct_calls_of_the_kernels_are_checked_too(position, tensor):
    if backend("cpu") != "extension":
        pytest.skip(f"no compiled kernel: {library.why_reference('cpu')}")
    inputs = make_inputs().to(torch.float32)
    arguments = [inputs.value, inputs.shapes, inputs.locations, inputs.weights]
    arguments[position] = tensor
    with pytest.raises(ValueError, match="expected"):
        OPERATOR(*arguments)
    with pytest.raises(ValueError, match="expected"):
        BACKWARD(torch.zeros(2, 3, 16), *arguments, [True] * 3)
