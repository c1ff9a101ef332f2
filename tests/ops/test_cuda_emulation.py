"""The CUDA kernels on the CPU, against the operators. Numbers and control flow are the same as on a device; its memory
model and its speed are not, for threads run one after the other between shuffles and barriers.

Environment: DINOX_EMULATION_FLAGS, more flags for the compiler: "-fsanitize=address,undefined", with that library in
LD_PRELOAD, finds reads and writes beyond tensors and shared memory.
"""

import ctypes
import itertools
import os
import shutil

import pytest
import torch
from torch import Tensor

from dinox.ops import ms_deform_attn, ms_deform_attn_fused
from tests.ops.cuda_emulation import Emulation, compile_library
from tests.ops.inputs import LEVELS, Inputs, gradients, make_inputs
from tests.ops.test_fused import Raw, make_raw
from tests.ops.test_fused import gradients as fused_gradients

pytestmark = pytest.mark.slow  # the compilation

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Kernels have vectors for 16 channels and for multiples of 32, and know 4 points; anything else takes the others.
CHANNELS_AND_POINTS = [(32, 4), (32, 3), (16, 4), (64, 4), (96, 5), (1, 4), (8, 8), (30, 4), (40, 1)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    cxx = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    if cxx is None:
        pytest.skip("no C++ compiler")
    flags = os.environ.get("DINOX_EMULATION_FLAGS", "").split()
    return compile_library(cxx, tmp_path_factory.mktemp("cuda_emulation"), *flags)


@pytest.fixture(params=[1, 132], ids=["large blocks", "small blocks"])
def emulation(library, request):
    return Emulation(library, multiprocessors=request.param)


def random_grad(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def unfused_results(emulation: Emulation, inputs: Inputs, **options) -> list[Tensor]:
    """[output, gradients of value, locations, weights]"""
    value, sizes, locations, weights = inputs
    output = emulation.forward(value, sizes, locations, weights)
    grad = random_grad(output.shape, value.dtype)
    return [output, *emulation.backward(grad, value, sizes, locations, weights, **options)]


def fused_results(emulation: Emulation, raw: Raw, sizes=LEVELS, **options) -> list[Tensor]:
    """[output, gradients of value, references, offsets, logits]"""
    value, references, offsets, logits = raw
    output = emulation.forward(value, sizes, offsets, logits, references)
    grad = random_grad(output.shape, value.dtype)
    grad_value, *rest = emulation.backward(grad, value, sizes, offsets, logits, references, **options)
    return [output, grad_value, rest[2], rest[0], rest[1]]


def assert_close(actual: list[Tensor], expected: list[Tensor], rounding: float | None = None) -> None:
    """To a few roundings of each tensor's greatest number, or to one rounding of what is stored in less precision."""
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if got.numel() == 0:
            continue
        scale = want.double().abs().max().clamp(min=1e-3).item()
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(got.dtype, torch.finfo(got.dtype).eps)
        torch.testing.assert_close(
            got.double() / scale, want.double() / scale, rtol=tolerance, atol=max(tolerance / 2, 1e-12)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "points"), CHANNELS_AND_POINTS)
def test_unfused(library, channels, points, dtype):
    emulation = Emulation(library)
    inputs = make_inputs(channels=channels, points=points, queries=13).to(dtype)
    expected = gradients(ms_deform_attn, inputs, inputs.sizes, random_grad((2, 13, 2 * channels), dtype))
    assert_close(unfused_results(emulation, inputs), expected)
    assert_close(unfused_results(emulation, inputs, deterministic=True), expected)


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "points"), CHANNELS_AND_POINTS)
def test_fused(emulation, channels, points, dtype, reference_size):
    raw = make_raw(channels=channels, points=points, queries=13, reference_size=reference_size).to(dtype)
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS, random_grad((2, 13, 2 * channels), dtype))
    assert_close(fused_results(emulation, raw), expected)
    assert_close(fused_results(emulation, raw, deterministic=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offsets", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logits", [torch.float32, torch.float16, torch.bfloat16])
def test_offsets_and_logits_are_read_as_they_are(library, dtype, offsets, logits):
    emulation = Emulation(library)
    raw = make_raw(channels=32, reference_size=4).to(dtype)
    raw = raw._replace(offsets=raw.offsets.to(offsets), logits=raw.logits.to(logits))
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS, random_grad((2, 3, 64), dtype))
    assert_close(fused_results(emulation, raw), expected)


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_numbers_of_levels_and_heads(emulation, num_levels, heads):
    sizes = LEVELS[:num_levels]
    for dtype in (torch.float32, torch.bfloat16):
        raw = make_raw(sizes, channels=32, heads=heads, queries=9).to(dtype)
        expected = fused_gradients(ms_deform_attn_fused, raw, sizes, random_grad((2, 9, heads * 32), dtype))
        assert_close(fused_results(emulation, raw, sizes), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_that_are_the_tokens_of_the_levels(emulation, dtype):
    sizes = [(9, 11), (5, 6), (3, 3), (1, 1)]
    queries = sum(height * width for height, width in sizes)
    raw = make_raw(sizes, channels=32, queries=queries).to(dtype)
    expected = fused_gradients(ms_deform_attn_fused, raw, sizes, random_grad((2, queries, 64), dtype))
    assert_close(fused_results(emulation, raw, sizes), expected)
    assert_close(fused_results(emulation, raw, sizes, deterministic=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [32, 64])
@pytest.mark.parametrize("multiprocessors", [1, 64])
def test_small_levels_are_accumulated_in_shared_memory(library, multiprocessors, channels, dtype):
    emulation = Emulation(library, multiprocessors=multiprocessors)
    sizes = [(7, 9), (3, 4), (1, 2)]
    raw = make_raw(sizes, channels=channels, queries=200).to(dtype)
    grad = random_grad((2, 200, 2 * channels), dtype)
    assert_close(fused_results(emulation, raw, sizes), fused_gradients(ms_deform_attn_fused, raw, sizes, grad))
    assert emulation.shared_rows == (7 * 9 if multiprocessors == 1 else 0) + 3 * 4 + 1 * 2
    inputs = make_inputs(sizes, channels=channels, queries=200).to(dtype)
    assert_close(unfused_results(emulation, inputs), gradients(ms_deform_attn, inputs, sizes, grad))
    assert emulation.shared_rows > 0


@pytest.mark.parametrize(("channels", "points"), [(32, 4), (30, 3)])
def test_samples_that_are_nowhere_and_pixels_that_are_not_read(emulation, channels, points):
    """NaN pixels may show only in samples of which they are corners: a pixel that stands in for one beyond the level,
    or for a sample that is nowhere, must not."""
    inputs = make_inputs(channels=channels, points=points, queries=9).to(torch.float32)
    inputs.locations[0, 0, 0, 0, 0] = torch.nan
    inputs.locations[0, 1, 1, 1, 1] = torch.inf
    inputs.locations[0, 2, 1, 2, 0, 0] = -torch.inf
    inputs.locations[1, 0, 0, 3, 2] = 1e30
    inputs.locations[1, 1] = -3.0
    for bad in (1.0, torch.nan, torch.inf):
        inputs.value[:, 0] = inputs.value[:, 35] = bad
        inputs.value[1, :, :, :2] = bad
        expected = gradients(ms_deform_attn, inputs, inputs.sizes, random_grad((2, 9, 2 * channels), torch.float32))
        for options in ({}, {"deterministic": True}):
            actual = unfused_results(emulation, inputs, **options)
            for got, want in zip(actual, expected, strict=True):
                assert torch.equal(got.isnan(), want.isnan())
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_raw_inputs_that_are_nowhere(emulation):
    raw = make_raw(reference_size=4, channels=32).to(torch.float32)
    raw.offsets[0, 0, 0, 0, 0, 0] = torch.nan
    raw.offsets[0, 1, 0, 0, 0, 1] = torch.inf
    raw.logits[1] = -1e30
    raw.logits[0, 1] *= 1e4
    output, grad_value, grad_references, grad_offsets, grad_logits = fused_results(emulation, raw)
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS, random_grad((2, 3, 64), torch.float32))
    assert_close([output, grad_value, grad_offsets, grad_logits], [*expected[:2], *expected[3:]])
    assert grad_references.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fixed_order_of_additions_changes_no_bit(library, dtype):
    raw = make_raw(channels=32, queries=40).to(dtype)
    results = [fused_results(Emulation(library, size), raw, deterministic=True) for size in (1, 132, 1)]
    assert torch.equal(results[0][1], results[2][1])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("channels", [32, 30])
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=4)))
def test_gradients_of_some_inputs_only(library, mask, channels, deterministic):
    emulation = Emulation(library)
    value, references, offsets, logits = make_raw(channels=channels, queries=9, reference_size=4).to(torch.float32)
    arguments = (random_grad((2, 9, 2 * channels), value.dtype), value, LEVELS, offsets, logits, references)
    complete = emulation.backward(*arguments, deterministic=deterministic)
    some = emulation.backward(*arguments, deterministic=deterministic, output_mask=mask)
    for got, wanted, expected in zip(some, mask, complete, strict=True):
        assert (got is not None) == wanted
        if wanted:  # additions to value may come in another order
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    locations, weights = offsets / 9, logits.softmax(-1)
    complete = emulation.backward(*arguments[:3], locations, weights, deterministic=deterministic)
    some = emulation.backward(*arguments[:3], locations, weights, deterministic=deterministic, output_mask=mask)
    for got, wanted, expected in zip(some, mask[:3], complete, strict=True):
        assert (got is not None) == wanted
        if wanted:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_many_points(emulation):
    raw = make_raw(LEVELS[:2], channels=32, points=80, queries=5).to(torch.float32)
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS[:2], random_grad((2, 5, 64), torch.float32))
    assert_close(fused_results(emulation, raw, LEVELS[:2]), expected)


def test_indices_beyond_32_bits(library):
    compiled = Emulation(library).library
    compiled.emulate_index_of.restype = compiled.emulate_offset_of.restype = ctypes.c_int64
    for image, rows, row, heads, head in [(133, 89_023, 89_022, 8, 7), (4_000, 2**25, 2**25 - 1, 16, 15)]:
        assert compiled.emulate_index_of(image, rows, row, heads, head) == (image * rows + row) * heads + head
    token, part = 2**26 - 1, ctypes.c_int64(4096)
    assert compiled.emulate_offset_of(token, 2**20, part, 1) == token * 2**20 + 4096
    assert compiled.emulate_offset_of(-1, 1024, part, 1) == 4096 - 1024
    assert compiled.emulate_offset_of(4_194_303, 1023, part, 0) == (4_194_303 * 1023 + 4096) % 2**32
    for divisor in (1, 2, 3, 4, 5, 7, 100, 4097):
        for i in (0, 1, divisor - 1, divisor, 64 * divisor - 1, 63 * divisor):
            assert compiled.emulate_divide(i, divisor) == i // divisor
