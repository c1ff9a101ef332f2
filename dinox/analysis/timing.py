"""How long the phases of detection and of a training step take.

Phases are the model's parts, by name, and

* ``data``: waiting for the next batch, where it comes from a loader
* ``preprocessing``: what the model does before its first part (normalisation, padding, targets)
* ``matching``: the criterion's matcher, in training
* ``between the parts``: what the model does itself
* ``postprocessing``: from predictions to ``Instances``, in detection
* ``backward``, and ``optimizer step``, which includes clipping and the check that losses are finite

On a GPU every boundary waits for the device, so that a phase's work counts as its own. The total is measured that way
too, and a step that nobody watches is a little faster.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn
from tqdm import tqdm

from dinox.analysis.modes import in_mode
from dinox.analysis.parts import BETWEEN, watch_parts
from dinox.engine.trainer import AUTOCAST_DTYPES, Trainer

DATA, MATCHING = "data", "matching"
PREPROCESSING, POSTPROCESSING = "preprocessing", "postprocessing"
BACKWARD, OPTIMIZER_STEP = "backward", "optimizer step"


@dataclass(frozen=True)
class Repetitions:
    """``warmup`` runs that do not count, then ``most`` that do. Where either takes more than ``budget`` seconds, one to
    warm up and ``fewest`` that count are enough."""

    warmup: int = 2
    fewest: int = 3
    most: int = 10
    budget: float = 20.0


DEFAULT_REPETITIONS = Repetitions()


@dataclass(frozen=True)
class PhaseTimes:
    """seconds: medians by phase, in the order of the phases. total: median of the whole runs. runs: how many.

    peak_bytes: the most memory that tensors took on the GPU in one of the runs, weights included; None on the CPU.
    """

    seconds: dict[str, float]
    total: float
    runs: int
    peak_bytes: int | None = None


def profile_phases(
    model: nn.Module,
    inputs: list[dict] | None = None,
    *,
    loader: Iterable[list[dict]] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    precision: str = "fp32",
    repetitions: Repetitions = DEFAULT_REPETITIONS,
) -> PhaseTimes:
    """Time detection, or with an optimizer whole training steps, which change the model's weights.

    Args:
        model: on the device to measure.
        inputs: one batch for all runs; in training with ``instances``.
        loader: of the runs' batches, instead of ``inputs``; begun again at its end.
        precision: "fp32", "bf16" or "fp16"; evaluation of a training run is in fp32.

    Raises ValueError unless there is one of ``inputs`` and ``loader``.
    """
    if (inputs is None) == (loader is None):
        raise ValueError("expected either inputs or a loader, got " + ("none" if loader is None else "both"))
    watch = _Watch(next(model.parameters()).device)
    batches = repeat(inputs) if loader is None else _watched_batches(loader, watch)
    if optimizer is None:
        return _profile_detection(model, iter(batches), watch, precision, repetitions)
    with (
        in_mode(model, training=True),
        watch_parts(model, watch.switch_in_forward),
        _watched_matcher(model, watch),
        EventStorage() as storage,
    ):
        trainer = Trainer(
            model=model, data_loader=batches, optimizer=optimizer, device=watch.device, precision=precision
        )
        trainer.iter, trainer.storage = 0, storage
        trainer.register_hooks([_AfterBackward(watch)])
        end_of_forward = model.register_forward_hook(lambda *_: watch.switch(BACKWARD))
        try:
            return _repeat(trainer.run_step, watch, repetitions, name="training step", last_gap=BETWEEN)
        finally:
            end_of_forward.remove()


def _profile_detection(
    model: nn.Module, batches: Iterator[list[dict]], watch: "_Watch", precision: str, repetitions: Repetitions
) -> PhaseTimes:
    dtype = AUTOCAST_DTYPES[precision]
    with (
        in_mode(model, training=False),
        watch_parts(model, watch.switch),
        torch.no_grad(),
        torch.autocast(watch.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        return _repeat(lambda: model(next(batches)), watch, repetitions, name="detection", last_gap=POSTPROCESSING)


def _watched_batches(loader: Iterable[list[dict]], watch: "_Watch") -> Iterator[list[dict]]:
    batch = None
    while True:
        watch.switch(DATA)
        for batch in loader:
            watch.switch(None)
            yield batch
            watch.switch(DATA)
        if batch is None:
            raise ValueError("the loader has no batches")


@contextmanager
def _watched_matcher(model: nn.Module, watch: "_Watch") -> Iterator[None]:
    """The matcher is no module that could have hooks."""
    criterion = getattr(model, "criterion", None)
    matcher = getattr(criterion, "matcher", None)
    if matcher is None:
        yield
        return

    def watched(*args, **kwargs):
        watch.switch(MATCHING)
        try:
            return matcher(*args, **kwargs)
        finally:
            watch.switch("criterion")

    criterion.matcher = watched
    try:
        yield
    finally:
        criterion.matcher = matcher


class _AfterBackward(HookBase):
    def __init__(self, watch: "_Watch"):
        self._watch = watch

    def after_backward(self) -> None:
        self._watch.switch(OPTIMIZER_STEP)


class _Watch:
    """Laps of one run: which phase, how many seconds."""

    def __init__(self, device: torch.device):
        self.device = device
        self._phase: str | None = None
        self._laps: list[tuple[str | None, float]] = []
        self._last = 0.0

    def start(self) -> None:
        self._phase, self._laps, self._last = None, [], self._now()

    def switch(self, phase: str | None) -> None:
        now = self._now()
        self._laps.append((self._phase, now - self._last))
        self._phase, self._last = phase, now

    def switch_in_forward(self, part: str | None) -> None:
        # Parts that are computed again for the backward pass (checkpointing) belong to it.
        if self._phase != BACKWARD:
            self.switch(part)

    def stop(self) -> list[tuple[str | None, float]]:
        self.switch(None)
        return self._laps

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _repeat(
    run: Callable[[], object], watch: _Watch, repetitions: Repetitions, *, name: str, last_gap: str
) -> PhaseTimes:
    for _ in _until_budget(1, repetitions.warmup, repetitions.budget, f"warming up: {name}"):
        run()
    on_gpu = watch.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(watch.device)
    measured: list[dict[str, float]] = []
    for _ in _until_budget(repetitions.fewest, repetitions.most, repetitions.budget, f"timing: {name}"):
        watch.start()
        run()
        measured.append(_by_phase(watch.stop(), last_gap))
    phases = dict.fromkeys(phase for times in measured for phase in times)
    return PhaseTimes(
        seconds={phase: statistics.median(times.get(phase, 0.0) for times in measured) for phase in phases},
        total=statistics.median(sum(times.values()) for times in measured),
        runs=len(measured),
        peak_bytes=torch.cuda.max_memory_allocated(watch.device) if on_gpu else None,
    )


def _until_budget(fewest: int, most: int, budget: float, description: str) -> Iterator[int]:
    """Counts to ``most``, or, once ``budget`` seconds are over, only to ``fewest``; with a progress bar."""
    start = time.perf_counter()
    for i in tqdm(range(most), desc=description, leave=False, disable=None):  # None: off where there is no terminal
        if i >= fewest and time.perf_counter() - start > budget:
            break
        yield i


def _by_phase(laps: list[tuple[str | None, float]], last_gap: str) -> dict[str, float]:
    """Seconds by phase; the laps outside of the parts get their names by their place."""
    names = [phase for phase, _ in laps]
    first = next((i for i, phase in enumerate(names) if phase not in (None, DATA)), len(laps))
    last = max((i for i, phase in enumerate(names) if phase is None), default=0)
    seconds: dict[str, float] = {}
    for i, (phase, lap) in enumerate(laps):
        if phase is None:
            phase = PREPROCESSING if i < first else last_gap if i == last else BETWEEN
        seconds[phase] = seconds.get(phase, 0.0) + lap
    return seconds
