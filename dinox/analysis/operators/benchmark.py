"""Measures deformable attention: all implementations in one process, on the same tensors, in turn.

Correctness comes first: an implementation whose output or gradients differ from the reference's is not timed. Rounds
alternate between the implementations, so that what else the machine does meets all of them. On a GPU, times are those
of CUDA events; "cold" runs find nothing of their inputs in the L2 cache.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dinox.analysis.operators.cases import CASES, CHANNELS, Case, Inputs, make_inputs
from dinox.analysis.operators.contenders import BASELINE, Contender, find_contenders

_CORNERS = 4
_L2_FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}  # relative to the greatest number
# Gradients by location jump where a sample passes the centre of a pixel: rounding decides the side of so many samples.
_SHARE_ON_JUMPS = 1e-5
_WARM_UP = 2


@dataclass(frozen=True)
class Measurement:
    """One implementation at one case. Times in milliseconds; ratios are those of the minima to the baseline's.

    ``phase``: "forward", "forward+backward", or "forward, CUDA graph". ``gathered_gb_s``: value rows read, per second.
    ``bound_share``: time that moving the unavoidable bytes once takes here (a measured copy), over the minimum.
    ``speedup_over_own_float32``: of ours with values of lower precision, over itself with float32 ones, round by round.
    """

    case: str
    locations: str
    dtype: str
    phase: str
    cache: str
    contender: str
    median_ms: float
    min_ms: float
    rounds: int
    gathered_gb_s: float
    bound_share: float
    peak_mb: float | None
    speedup: float | None
    speedup_over_own_float32: float | None = None


@dataclass(frozen=True)
class OperatorReport:
    """``refused``: implementations that gave other numbers than the reference, and by how much."""

    device: str
    threads: int
    copy_gb_s: float
    measurements: list[Measurement] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def benchmark_operator(
    cases: Sequence[str],
    *,
    device: str = "cpu",
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    near: Sequence[bool] = (True,),
    rounds: int = 9,
    on_measurement: Callable[[Measurement], None] | None = None,
) -> OperatorReport:
    """Measure cases (names in ``CASES``) with all implementations that are installed.

    Args:
        device: "cpu" (with torch's current number of threads) or "cuda".
        dtypes: of values. Implementations that do not take one are left out there; the baseline runs in float32.
        near: locations near the queries (True), anywhere (False), or both in turn.
        rounds: of each implementation; the baseline gets a third of them where it takes long.
        on_measurement: called with each result as it comes.

    Raises ValueError for an unknown case.
    """
    unknown = [name for name in cases if name not in CASES]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}: expected some of {', '.join(CASES)}")
    contenders, missing = find_contenders()
    contenders = [contender for contender in contenders if device in contender.devices]
    clock = _GpuClock() if device == "cuda" else _CpuClock()
    report = OperatorReport(_device_name(device), torch.get_num_threads(), clock.copy_rate(), missing=missing)
    for name in cases:
        for is_near in near:
            for dtype in dtypes:
                for measurement in _measure_case(CASES[name], is_near, dtype, contenders, clock, rounds, report):
                    report.measurements.append(measurement)
                    if on_measurement is not None:
                        on_measurement(measurement)
    return report


def _measure_case(
    case: Case,
    near: bool,
    dtype: torch.dtype,
    contenders: list[Contender],
    clock: "_CpuClock | _GpuClock",
    rounds: int,
    report: OperatorReport,
) -> list[Measurement]:
    inputs = {d: make_inputs(case, near=near, device=clock.device, dtype=d) for d in {dtype, torch.float32}}
    of = {
        contender: inputs[dtype if dtype in contender.dtypes else torch.float32]
        for contender in contenders
        if dtype in contender.dtypes or contender.name == BASELINE
    }
    exact = _Exact(contenders, inputs[torch.float32])
    for contender in list(of):
        why = exact.why_refused(contender, of[contender])
        if why:
            report.refused[f"{contender.name} {case.name}"] = why
            del of[contender]
    # Ours once more with float32 values, to compare with.
    in_float32 = {} if dtype == torch.float32 else {c: replace(c) for c in of if c.ours}
    of |= dict.fromkeys(in_float32.values(), inputs[torch.float32])
    measurements = []
    for phase, cache, make_run in clock.phases(case):
        runs = {contender: make_run(contender, own) for contender, own in of.items()}
        times = clock.time_in_turn(runs, rounds, cold=cache == "cold")
        base = min(next(seconds for contender, seconds in times.items() if contender.name == BASELINE))
        for contender, seconds in times.items():
            if any(contender is twin for twin in in_float32.values()):
                continue
            best = min(seconds)
            twin = in_float32.get(contender)
            measurements.append(
                Measurement(
                    case=case.name,
                    locations="near" if near else "uniform",
                    dtype=str(of[contender].value.dtype).removeprefix("torch."),
                    phase=phase,
                    cache=cache,
                    contender=contender.name,
                    median_ms=statistics.median(seconds) * 1e3,
                    min_ms=best * 1e3,
                    rounds=len(seconds),
                    gathered_gb_s=_gathered_bytes(case, of[contender], phase) / best / 1e9,
                    bound_share=_least_bytes(of[contender], phase) / report.copy_gb_s / 1e9 / best,
                    peak_mb=clock.peak_mb(runs[contender]),
                    speedup=None if contender.name == BASELINE else base / best,
                    speedup_over_own_float32=None if twin is None else min(times[twin]) / best,
                )
            )
    return measurements


# ---------------------------------------------------------------- what is run, and what it moves


def _forward(contender: Contender, inputs: Inputs) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.no_grad():
            return contender.attend(inputs)

    return run


def _forward_backward(contender: Contender, inputs: Inputs) -> Callable[[], Any]:
    leaves = contender.leaves(inputs)
    grad = None

    def run() -> tuple[Tensor, ...]:
        nonlocal grad
        for leaf in leaves:
            leaf.requires_grad_()
        output = contender.attend(inputs)
        if grad is None:
            grad = torch.randn_like(output)
        return torch.autograd.grad(output, leaves, grad)

    return run


class _Exact:
    """Output and gradients of the reference, for each set of tensors that contenders are differentiated by."""

    def __init__(self, contenders: list[Contender], inputs: Inputs) -> None:
        self._contenders, self._inputs = contenders, inputs
        self._by_leaves: dict[Callable, list[Tensor]] = {}

    def why_refused(self, contender: Contender, inputs: Inputs) -> str:
        """What differs and by how much, or ""."""
        tolerance = _TOLERANCES[inputs.value.dtype]
        output, *grads = _results(contender, inputs)
        exact_output, *exact_grads = self._results_of(contender.leaves)
        difference = _difference(output, exact_output, 0)
        if not difference <= tolerance:  # NaN is not
            return f"output differs by {difference:.1e} of its size"
        for number, (grad, exact) in enumerate(zip(grads, exact_grads, strict=True)):
            if not grad.isfinite().all():
                return f"gradient {number} is not finite"
            difference = _difference(grad, exact, _SHARE_ON_JUMPS)
            if not difference <= tolerance:
                return f"gradient {number} differs by {difference:.1e} of its size"
        return ""

    def _results_of(self, leaves: Callable) -> list[Tensor]:
        if leaves not in self._by_leaves:
            reference = next(c for c in self._contenders if c.is_reference and c.leaves is leaves)
            self._by_leaves[leaves] = _results(reference, self._inputs)
        return self._by_leaves[leaves]


def _results(contender: Contender, inputs: Inputs) -> list[Tensor]:
    """[output, its gradients by the contender's leaves] under one fixed gradient of the output, in float32."""
    leaves = [leaf.requires_grad_() for leaf in contender.leaves(inputs)]
    output = contender.attend(inputs)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [tensor.detach().float() for tensor in (output, *torch.autograd.grad(output, leaves, grad))]


def _difference(actual: Tensor, exact: Tensor, share_left_out: float) -> float:
    """The greatest but for a share of them, relative to the greatest number."""
    differences = (actual - exact).abs().flatten()
    left_out = int(share_left_out * differences.numel())
    greatest = differences.kthvalue(differences.numel() - left_out).values if left_out else differences.max()
    return (greatest / exact.abs().max()).item()


def _gathered_bytes(case: Case, inputs: Inputs, phase: str) -> int:
    """Value rows of all corners; the backward pass reads them again, and reads and writes those of the gradient."""
    rows = case.samples * _CORNERS * CHANNELS
    forward = rows * inputs.value.element_size()
    return forward if "backward" not in phase else 2 * forward + 2 * rows * 4


def _least_bytes(inputs: Inputs, phase: str) -> int:
    """Every input read once, every output written once."""
    parts = (inputs.value, inputs.locations, inputs.weights)
    read = sum(part.numel() * part.element_size() for part in parts)
    batch, queries, heads = inputs.locations.shape[:3]
    output = batch * queries * heads * CHANNELS * inputs.value.element_size()
    return read + output if "backward" not in phase else 3 * read + 2 * output


# ---------------------------------------------------------------- clocks


class _CpuClock:
    device = "cpu"

    def phases(self, case: Case) -> list[tuple[str, str, Callable]]:
        return [("forward", "warm", _forward), ("forward+backward", "warm", _forward_backward)]

    def time_in_turn(self, runs: dict[Contender, Callable], rounds: int, *, cold: bool) -> dict[Contender, list[float]]:
        times: dict[Contender, list[float]] = {contender: [] for contender in runs}
        for run in runs.values():
            for _ in range(_WARM_UP):
                run()
        for number in range(rounds):
            for contender, run in runs.items():
                slow = "grid_sample" in contender.name
                if slow and number % 3:
                    continue
                start = time.perf_counter()
                run()
                times[contender].append(time.perf_counter() - start)
        return times

    def peak_mb(self, run: Callable) -> None:
        return None

    def copy_rate(self) -> float:
        """GB/s, read and written, of the best of some large copies."""
        source = torch.ones(32 * 2**20)  # 128 MiB: no cache holds it
        target = torch.empty_like(source)
        best = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
        return 2 * source.numel() * 4 / best / 1e9


class _GpuClock:
    device = "cuda"

    def __init__(self) -> None:
        self._flush = torch.empty(_L2_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def phases(self, case: Case) -> list[tuple[str, str, Callable]]:
        found = [
            (phase, cache, make)
            for cache in ("warm", "cold")
            for phase, make in (("forward", _forward), ("forward+backward", _forward_backward))
        ]
        if case.queries is not None:  # decoders: launches take as long as the work
            found.append(("forward, CUDA graph", "warm", _captured_forward))
        return found

    def time_in_turn(self, runs: dict[Contender, Callable], rounds: int, *, cold: bool) -> dict[Contender, list[float]]:
        times: dict[Contender, list[float]] = {contender: [] for contender in runs}
        for run in runs.values():
            for _ in range(20):
                run()
        for _ in range(rounds):
            for contender, run in runs.items():
                if cold:
                    self._flush.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                times[contender].append(start.elapsed_time(end) / 1e3)
        return times

    def peak_mb(self, run: Callable) -> float:
        """Of one run, above what was allocated before it."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def copy_rate(self) -> float:
        source = torch.ones(256 * 2**20, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        seconds = []
        for _ in range(10):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        return 2 * source.numel() / min(seconds) / 1e9


def _captured_forward(contender: Contender, inputs: Inputs) -> Callable[[], Any]:
    run = _forward(contender, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # some implementations wait for the device, which cannot be captured: as they are
        return run
    return graph.replay


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"
