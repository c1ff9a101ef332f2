"""Whether training's memory grows: a run of the command that users run, watched from outside, step after step.

A process's resident memory is all that it has in RAM; what workers share with the process that forked them counts in
each of them. Its own memory is what is of no file, such as a library's code, with one n-th of what n processes share:
the sum is what the run takes from others.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRAINING = "training"
"""Name of the process that trains; those that load its data are "worker 1", ..."""

_POLL = 0.01  # seconds, a fraction of a step
_PATIENCE = 60  # seconds that a stopped run has to save and end
_LOG_TAIL = 2000  # characters


@dataclass(frozen=True)
class MemorySample:
    """Bytes by process. resident: mean over the step (from 1), during which memory comes and goes; own: at its end."""

    step: int
    resident: dict[str, int]
    own: dict[str, int]

    def with_totals(self) -> dict[str, int]:
        totals = {"total": sum(self.resident.values()), "own total": sum(self.own.values())}
        return self.resident | totals


@dataclass(frozen=True)
class SoakReport:
    """samples: one of every step that the watcher saw. from_step: earlier ones do not count in slopes."""

    config: str
    overrides: tuple[str, ...]
    workers: int
    from_step: int
    samples: tuple[MemorySample, ...]

    @property
    def counted(self) -> tuple[MemorySample, ...]:
        return tuple(sample for sample in self.samples if sample.step >= self.from_step)

    def slopes(self) -> dict[str, "Slope"]:
        """By process, and "total" and "own total" of all together."""
        steps, rows = [sample.step for sample in self.counted], [sample.with_totals() for sample in self.counted]
        return {name: slope_per_100_steps(steps, [row.get(name, 0) for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Slope:
    """Bytes per 100 steps. error: the standard error, were the values' deviations from the line independent."""

    value: float
    error: float


def slope_per_100_steps(steps: Sequence[int], values: Sequence[float]) -> Slope:
    """Least squares of at least 3 values."""
    x = np.asarray(steps) - np.mean(steps)
    slope, height = np.polyfit(x, values, deg=1)
    deviations = values - (slope * x + height)
    error = np.sqrt((deviations**2).sum() / (len(x) - 2) / (x**2).sum())
    return Slope(value=100 * float(slope), error=100 * float(error))


def soak(
    config: str,
    overrides: Sequence[str] = (),
    *,
    steps: int = 300,
    from_step: int = 100,
    workers: int = 2,
    on_sample: Callable[[MemorySample], None] | None = None,
) -> SoakReport:
    """``dinox train`` of a config, a file or a name in the model zoo, for so many steps, in a temporary folder.

    Raises:
        ValueError: no 3 steps to count; not Linux, whose /proc is read; or the training failed, with its last words.
    """
    if not 1 <= from_step <= steps - 2:
        raise ValueError(f"from_step: expected 1 to {steps - 2}, of which 3 of {steps} steps count, got {from_step}")
    if not Path("/proc/self/smaps_rollup").exists():
        raise ValueError(f"soak reads memory from Linux's /proc/PID/smaps_rollup, which {sys.platform} does not have")
    samples = []
    with tempfile.TemporaryDirectory(prefix="dinox-soak-") as folder:
        for sample in _watch(_command(config, overrides, steps, workers, folder), Path(folder), steps):
            samples.append(sample)
            if on_sample is not None:
                on_sample(sample)
    return SoakReport(config, tuple(overrides), workers, from_step, tuple(samples))


def _command(config: str, overrides: Sequence[str], steps: int, workers: int, folder: str) -> list[str]:
    own = {
        "train.output_dir": f"{folder}/run",
        "train.max_iter": 2 * steps,  # it is stopped before
        "train.log_period": 1,
        "dataloader.train.num_workers": workers,
    }
    settings = [f"{key}={value}" for key, value in own.items()]
    return [sys.executable, "-m", "dinox", "train", "--config-file", config, *overrides, *settings]


def _watch(command: Sequence[str], folder: Path, steps: int) -> Iterator[MemorySample]:
    """Starts the run, yields a sample after each step, stops it after the last one."""
    with (folder / "log.txt").open("w") as log:
        training = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        for sample in _samples(training.pid, _Progress(folder), still_runs=lambda: training.poll() is None):
            yield sample
            if sample.step >= steps:
                return
        last_words = (folder / "log.txt").read_text(errors="replace")[-_LOG_TAIL:]
        raise ValueError(f"training ended before step {steps}, with exit code {training.returncode}:\n{last_words}")
    finally:
        training.terminate()
        try:
            training.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            training.kill()
            training.wait()


def _samples(pid: int, progress: "_Progress", *, still_runs: Callable[[], bool]) -> Iterator[MemorySample]:
    last, readings = 0, defaultdict(list)
    while still_runs():
        time.sleep(_POLL)
        names = {TRAINING: pid} | {f"worker {n}": child for n, child in enumerate(_children(pid), start=1)}
        for name, process in names.items():
            readings[name] += _resident(process)
        step = progress.last_step()
        if step > last:
            own = {name: memory for name, process in names.items() for memory in _own(process)}
            yield MemorySample(step, {name: round(statistics.mean(readings[name])) for name in own}, own)
            last, readings = step, defaultdict(list)


class _Progress:
    """How far the run is, from metrics.json, of which only the new lines are read."""

    def __init__(self, folder: Path):
        self._metrics, self._read, self._last = folder / "run" / "metrics.json", 0, 0

    def last_step(self) -> int:
        """Its number, from 1; 0 before the first."""
        if self._metrics.exists() and self._metrics.stat().st_size > self._read:
            with self._metrics.open("rb") as file:
                file.seek(self._read)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read += len(whole)
            if whole:
                self._last = json.loads(whole.splitlines()[-1])["iteration"] + 1
        return self._last


def _children(pid: int) -> list[int]:
    """Process ids, in the order of their start."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sorted(int(child) for thread in threads for child in (thread / "children").read_text().split())
    except OSError:  # a thread, or all of it, has ended meanwhile
        return []


def _resident(pid: int) -> list[int]:
    """Bytes; nothing of a process that has ended."""
    try:
        return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()]
    except OSError:
        return []


def _own(pid: int) -> list[int]:
    """Bytes; nothing of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:")]
