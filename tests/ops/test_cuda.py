"""Both operators on a CUDA device. What their kernels compute is tested without one in test_cuda_emulation.py."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dinox.ops import backend, library, ms_deform_attn, ms_deform_attn_fused, sampling_locations
from tests.ops.inputs import LEVELS, assert_all_close, gradients, make_inputs
from tests.ops.test_fused import Raw, make_raw
from tests.ops.test_fused import gradients as fused_gradients

pytestmark = pytest.mark.gpu

ENCODER_LEVELS = [(100, 167), (50, 84), (25, 42), (13, 21)]  # of a 800x1333 image but for the finest
CHANNELS_AND_POINTS = [(1, 4), (8, 8), (16, 4), (30, 4), (32, 1), (32, 4), (64, 4), (100, 3)]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def cuda_kernel() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if backend("cuda") != "extension":
        pytest.skip(f"no compiled kernel: {library.why_reference('cuda')}")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def raw_on(raw: Raw, device: str = "cuda") -> Raw:
    return Raw(*(tensor.to(device) for tensor in raw))


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    """To a few roundings of each tensor's greatest number."""
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        if want.numel() == 0:
            assert got.shape == want.shape
            continue
        scale = want.double().abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            got.cpu().double() / scale, want.double() / scale, rtol=0, atol=TOLERANCES[got.dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("channels", "points"), [(1, 4), (8, 8), (16, 4), (30, 4), (32, 1), (32, 4), (64, 4), (100, 3)]
)
def test_unfused_equals_the_cpu(channels, points, dtype):
    inputs = make_inputs(channels=channels, points=points, queries=70).to(dtype)
    inputs.locations[0, 0, 0, 0, 0] = torch.nan
    inputs.locations[1, 5, 1, 1, 0] = torch.inf
    expected = gradients(ms_deform_attn, inputs, inputs.sizes)
    assert_same(gradients(ms_deform_attn, inputs.on("cuda"), inputs.sizes), expected)


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("channels", "points"), [(1, 4), (8, 8), (16, 4), (30, 4), (32, 1), (32, 4), (64, 4), (100, 3)]
)
def test_fused_equals_the_cpu(channels, points, dtype, reference_size):
    raw = make_raw(channels=channels, points=points, queries=70, reference_size=reference_size).to(dtype, dtype)
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS)
    assert_same(fused_gradients(ms_deform_attn_fused, raw_on(raw), LEVELS), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("raw_dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_offsets_and_logits_of_any_dtype(dtype, raw_dtype):
    raw = make_raw(channels=32).to(dtype, raw_dtype)
    assert_same(
        fused_gradients(ms_deform_attn_fused, raw_on(raw), LEVELS),
        fused_gradients(ms_deform_attn_fused, raw, LEVELS),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 8])
def test_an_encoder_whose_coarse_levels_are_accumulated_in_shared_memory(dtype, heads):
    queries = sum(height * width for height, width in ENCODER_LEVELS)
    raw = make_raw(ENCODER_LEVELS, images=1, heads=heads, channels=32, queries=queries).to(dtype)
    assert_same(
        fused_gradients(ms_deform_attn_fused, raw_on(raw), ENCODER_LEVELS),
        fused_gradients(ms_deform_attn_fused, raw, ENCODER_LEVELS),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_deterministic_backward(dtype, deterministic):
    raw = make_raw([(25, 42), (13, 21)], channels=32, queries=3000).to(dtype)
    first, *others = (fused_gradients(ms_deform_attn_fused, raw_on(raw), [(25, 42), (13, 21)]) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))
    assert_same(first, fused_gradients(ms_deform_attn_fused, raw, [(25, 42), (13, 21)]))
    inputs = make_inputs(channels=30, queries=300).to(dtype).on("cuda")
    first, second = (gradients(ms_deform_attn, inputs, inputs.sizes) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_pixels_show_only_in_samples_that_read_them():
    inputs = make_inputs(channels=32, queries=70).to(torch.float32)
    inputs.locations[:, ::7] = torch.nan
    inputs.value[:, 0] = inputs.value[:, 35] = torch.nan
    expected = gradients(ms_deform_attn, inputs, inputs.sizes)
    actual = gradients(ms_deform_attn, inputs.on("cuda"), inputs.sizes)
    assert not expected[0][:, ::7].isnan().any()
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got.cpu().isnan(), want.isnan())


def both_operators() -> list[Callable[[], list[Tensor]]]:
    """Forward and backward on the device, with everything they need there already."""
    inputs = make_inputs(channels=32, queries=70).to(torch.float32).on("cuda")
    raw = raw_on(make_raw(channels=32, queries=70).to(torch.float32))
    grad = torch.ones(2, 70, 64, device="cuda")
    return [
        lambda: gradients(ms_deform_attn, inputs, inputs.sizes, grad),
        lambda: fused_gradients(ms_deform_attn_fused, raw, LEVELS, grad),
    ]


@pytest.mark.parametrize("fixed_order", [False, True])
def test_nothing_waits_for_the_device(fixed_order):
    torch.use_deterministic_algorithms(fixed_order)
    operators = both_operators()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for run in operators:
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("fixed_order", [False, True])
def test_cuda_graphs(fixed_order):
    torch.use_deterministic_algorithms(fixed_order)
    try:
        for run in both_operators():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                expected = [tensor.clone() for tensor in run()]
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = run()
            for _ in range(2):
                for tensor in captured:
                    tensor.fill_(torch.nan)
                graph.replay()
                assert_all_close(captured, expected, 1e-5)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("images", "queries"), [(134, 2), (0, 2), (2, 0), (70_000, 1)])
def test_any_number_of_images_and_queries(images, queries):
    sizes = LEVELS[:2]
    inputs = make_inputs(sizes, images=images, queries=queries).to(torch.float32)
    expected = gradients(ms_deform_attn, inputs, sizes)
    assert_same(gradients(ms_deform_attn, inputs.on("cuda"), sizes), expected)
    raw = make_raw(sizes, images=images, queries=queries).to(torch.float32)
    expected = fused_gradients(ms_deform_attn_fused, raw, sizes)
    assert_same(fused_gradients(ms_deform_attn_fused, raw_on(raw), sizes), expected)


def test_values_of_more_than_two_to_the_31_elements():
    images, tokens, heads, channels = 9, 1024 * 1024, 8, 32
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("less than 12 GiB of device memory are free")
    value = torch.zeros(images, tokens, heads, channels, device="cuda", dtype=torch.float16)
    value[-1, -1] = 1  # the last pixel of all
    locations = torch.full((images, 1, heads, 1, 4, 2), 1 - 0.5 / 1024, device="cuda")
    weights = torch.full((images, 1, heads, 1, 4), 0.25, device="cuda")
    output = ms_deform_attn(value, [(1024, 1024)], locations, weights)
    assert (output[-1] == 1).all()
    assert (output[:-1] == 0).all()


def test_inputs_need_be_neither_contiguous_nor_aligned():
    raw = make_raw(channels=32, queries=70).to(torch.float32)
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS)

    def shifted(tensor: Tensor) -> Tensor:
        """The same numbers, 4 bytes behind where a vector could be loaded from."""
        return torch.cat([tensor.new_zeros(1), tensor.flatten()]).cuda()[1:].view(tensor.shape)

    function = lambda value, sizes, *rest: ms_deform_attn_fused(shifted(value), sizes, *map(shifted, rest))  # noqa: E731
    assert_same(fused_gradients(function, raw, LEVELS), expected)
    scattered = Raw(*(tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in raw_on(raw)))
    assert_same(fused_gradients(ms_deform_attn_fused, scattered, LEVELS), expected)


def test_calls_run_on_the_device_of_their_inputs():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    raw = make_raw(channels=32).to(torch.float32)
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS)
    assert_same(fused_gradients(ms_deform_attn_fused, raw_on(raw, "cuda:1"), LEVELS), expected)
    assert torch.cuda.current_device() == 0


def test_calls_run_on_the_current_stream():
    raw = raw_on(make_raw(channels=32, queries=70).to(torch.float32))
    expected = fused_gradients(ms_deform_attn_fused, raw, LEVELS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = raw._replace(value=raw.value * 2)
        actual = fused_gradients(ms_deform_attn_fused, late, LEVELS)
    torch.cuda.current_stream().wait_stream(stream)
    assert_all_close(actual[:1], [expected[0] * 2], 1e-5)


def test_fused_takes_less_memory_than_its_parts():
    def in_parts(value, sizes, references, offsets, logits):
        locations = sampling_locations(references, offsets, shapes)
        return ms_deform_attn(value, sizes, locations, logits.flatten(-2).softmax(-1).view(logits.shape))

    shapes = torch.tensor(ENCODER_LEVELS)
    queries = sum(height * width for height, width in ENCODER_LEVELS)
    raw = raw_on(make_raw(ENCODER_LEVELS, images=1, heads=8, channels=32, queries=queries).to(torch.float32))
    peaks = {}
    for function in (in_parts, ms_deform_attn_fused):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        fused_gradients(function, raw, ENCODER_LEVELS)
        peaks[function] = torch.cuda.max_memory_allocated() - before
    assert peaks[ms_deform_attn_fused] < peaks[in_parts]


def test_limits_are_errors_that_name_the_argument():
    many = [(1, 1)] * 65
    inputs = make_inputs(many, points=1).to(torch.float32).on("cuda")
    with pytest.raises(ValueError, match="spatial_shapes: expected at most 64 levels on CUDA devices, got 65"):
        ms_deform_attn(inputs.value, many, inputs.locations, inputs.weights)
    with pytest.raises(ValueError, match="attention_weights: expected device cuda:0"):
        torch.ops.dinox.ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights.cpu())


@pytest.mark.parametrize("fixed_order", [False, True])
@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=4)))
def test_gradients_of_some_inputs_only(mask, fixed_order):
    torch.use_deterministic_algorithms(fixed_order)
    try:
        value, *rest = raw_on(make_raw(channels=32, queries=70, reference_size=4).to(torch.float32))
        flat = [side for size in LEVELS for side in size]
        backward = torch.ops.dinox.ms_deform_attn_fused_backward.default
        grad = torch.ones(2, 70, 64, device="cuda")
        complete = backward(grad, value, flat, *rest, [True] * 4)
        for got, wanted, expected in zip(backward(grad, value, flat, *rest, mask), mask, complete, strict=True):
            assert (got is not None) == wanted
            if wanted:
                assert_all_close([got], [expected], 1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    raw = raw_on(make_raw(channels=32).to(dtype))
    flat = [side for size in LEVELS for side in size]
    value, *rest = (tensor.requires_grad_() for tensor in raw)
    torch.library.opcheck(torch.ops.dinox.ms_deform_attn_fused.default, (value, flat, *rest))
