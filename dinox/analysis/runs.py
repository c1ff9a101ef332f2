"""Reading what training runs wrote: metrics.json, and the schedule in config.yaml."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinox.engine import schedule  # noqa: F401 registers the arithmetic of schedules for configs
from dinox.utils.suggest import did_you_mean

METRICS_FILE, CONFIG_FILE = "metrics.json", "config.yaml"

# What only a line about training steps has; other lines tell of evaluations.
_STEP_KEYS = {"lr", "total_loss", "data_time", "time"}
_NOT_A_METRIC = {"iteration", "epoch", "wall_time"}


@dataclass(frozen=True)
class Series:
    """One metric: iterations (P,) that were done, ascending, and values (P,)."""

    iterations: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Run:
    """metrics: by the names in metrics.json. notes: what whoever looks at the curves should know.

    clock, epochs: (iterations done, seconds) and (iterations done, epochs) at some moments, ascending, from (0, 0) on;
    None where the run tells nothing about them.
    """

    name: str
    folder: Path
    metrics: dict[str, Series]
    clock: Series | None
    epochs: Series | None
    notes: tuple[str, ...] = ()

    def along(self, axis: str, iterations: np.ndarray) -> np.ndarray:
        """Where iterations lie on the axis "epochs", "hours" or "iterations". Raises ValueError if the run does not
        tell."""
        if axis == "iterations":
            return iterations
        if axis == "epochs":
            if self.epochs is None:
                raise ValueError(
                    f"{self.folder}: how many epochs this run took is unknown: no `epoch` in {METRICS_FILE}, and no "
                    f"{CONFIG_FILE} with schedule.images_per_epoch and dataloader.train.total_batch_size. Use "
                    "--x iterations or --x hours"
                )
            return np.interp(iterations, self.epochs.iterations, self.epochs.values)
        if self.clock is None:
            raise ValueError(
                f"{self.folder}: how long this run took is unknown: no `wall_time` and no `time` in {METRICS_FILE}. "
                "Use --x iterations or --x epochs"
            )
        return np.interp(iterations, self.clock.iterations, self.clock.values) / 3600


def read_runs(folders: Sequence[str | os.PathLike], names: Sequence[str] | None = None) -> list[Run]:
    """Several runs, with names of their own: the given ones, or the shortest ends of their paths that differ."""
    if names is not None and len(names) != len(folders):
        raise ValueError(f"--names: expected one for each of {len(folders)} runs, got {len(names)}: {', '.join(names)}")
    if names is None:
        names = _shortest_names([Path(folder).resolve() for folder in folders])
    return [read_run(folder, name=name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: str | os.PathLike, *, name: str | None = None) -> Run:
    """A run of ``dinox train``, or of another trainer of detectron2 (which tells less).

    Lines that a resumed run wrote replace those of the same iterations. Lines that cannot be read (the last one of a
    run that was killed) are left out, and so are values that are no numbers.

    Raises ValueError if the folder holds no run, FileNotFoundError if it is not there.
    """
    folder = Path(folder)
    lines, unreadable = _read_lines(folder)
    entries = _in_order(lines)
    steps = [i for i, entry in entries.items() if _STEP_KEYS & entry.keys()]
    most = max(steps) + 1 if steps else max(entries)
    # The number of a line is that of the step before it is done; the line after the last step has no step of its own.
    by_done = {min(i + 1, most): {} for i in sorted(entries)}
    for i in sorted(entries):
        by_done[min(i + 1, most)] |= entries[i]
    keys = sorted({key for entry in by_done.values() for key in entry} - _NOT_A_METRIC)
    notes = [f"{unreadable} line{'s' * (unreadable > 1)} of {METRICS_FILE} cannot be read"] if unreadable else []
    clock = _series(by_done, "wall_time")
    if clock is None or not _covers(clock, steps):
        clock = _clock_of_steps(by_done)
        if clock is not None:
            notes.append(f"hours are those of its training steps alone: no wall_time in its {METRICS_FILE}")
    metrics = {key: _series(by_done, key) for key in keys}
    if not any(series is not None for series in metrics.values()):
        raise ValueError(
            f"{folder}: no metric in its {METRICS_FILE}: expected losses or evaluations, nothing to draw yet"
        )
    return Run(
        name=folder.resolve().name if name is None else name,
        folder=folder,
        metrics={key: series for key, series in metrics.items() if series is not None},
        clock=None if clock is None else _from_zero(clock),
        epochs=_epochs(by_done, folder, most),
        notes=tuple(notes),
    )


def require_metric(runs: Sequence[Run], metric: str) -> None:
    """Raises ValueError, with the nearest names, if none of the runs has this metric."""
    known = sorted({name for run in runs for name in run.metrics})
    if metric not in known:
        evaluations = ", ".join(name for name in known if is_evaluation(name)) or "none"
        raise ValueError(
            f"none of the runs has a metric {metric!r}.{did_you_mean(metric, known)} Evaluations they have: "
            f"{evaluations}; losses are named as in {METRICS_FILE}, such as total_loss"
        )


def is_evaluation(metric: str) -> bool:
    """``bbox/AP`` and its like are evaluations; the other metrics are about training steps."""
    return "/" in metric


def lower_is_better(metric: str) -> bool:
    """Of evaluations: ``matching/instability`` and the distances beside it."""
    return metric.startswith("matching/")


# --------------------------------------------------------------------------------------------------------- metrics.json


def _read_lines(folder: Path) -> tuple[list[dict], int]:
    """The file's lines, and how many cannot be read."""
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder; expected one that a training run wrote into", str(folder))
    file = folder / METRICS_FILE
    if not file.is_file():
        raise ValueError(f"{folder}: no {METRICS_FILE} in it: expected the output folder of a training run")
    parsed = [_parse(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    lines = [line for line in parsed if line is not None]
    if not lines:
        raise ValueError(f"{file}: expected one JSON object with `iteration` per line, found none: nothing to draw yet")
    return lines, len(parsed) - len(lines)


def _parse(line: str) -> dict | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("iteration"), int) else None


def _in_order(lines: list[dict]) -> dict[int, dict]:
    """iteration -> everything written about it by the last process that got there."""
    entries: dict[int, dict] = {}
    last_step = -1
    for line in lines:
        iteration = line["iteration"]
        if _STEP_KEYS & line.keys():
            # Lines about evaluations may come late; one about steps that goes back is that of a resumed run.
            if iteration <= last_step:
                entries = {i: entry for i, entry in entries.items() if i < iteration}
            last_step = iteration
        entries[iteration] = entries.get(iteration, {}) | line
    return entries


def _series(by_done: dict[int, dict], key: str) -> Series | None:
    points = [(done, entry[key]) for done, entry in by_done.items() if _is_number(entry.get(key))]
    if not points:
        return None
    done, values = zip(*points)
    return Series(np.array(done), np.array(values, dtype=float))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --------------------------------------------------------------------------------------------------- epochs and seconds


def _from_zero(series: Series) -> Series:
    # A resumed run may repeat an evaluation, and its clock then goes back a little.
    values = np.maximum.accumulate(series.values)
    return Series(np.array([0, *series.iterations]), np.array([0.0, *values]))


def _covers(clock: Series, steps: list[int]) -> bool:
    """Whether all lines about steps have a time; the first ones of a run that an older version began have none."""
    return {step + 1 for step in steps} <= set(clock.iterations.tolist())


def _clock_of_steps(by_done: dict[int, dict]) -> Series | None:
    """Seconds from the median duration of steps in each line, of the steps since the line before."""
    durations = _series(by_done, "time")
    if durations is None:
        return None
    steps = np.diff(durations.iterations, prepend=0)
    return Series(durations.iterations, np.cumsum(steps * durations.values))


def _epochs(by_done: dict[int, dict], folder: Path, most: int) -> Series | None:
    written = _series(by_done, "epoch")
    if written is not None:
        return _from_zero(written)
    per_iteration = _epochs_per_iteration(folder / CONFIG_FILE)
    return None if per_iteration is None else Series(np.array([0, most]), np.array([0.0, most * per_iteration]))


def _epochs_per_iteration(config: Path) -> float | None:
    try:
        cfg = OmegaConf.create(yaml.safe_load(config.read_text(encoding="utf-8")))
        batch_size = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
        images = OmegaConf.select(cfg, "schedule.images_per_epoch")
        return batch_size / images
    except (OSError, ValueError, TypeError, ZeroDivisionError, yaml.YAMLError, OmegaConfBaseException):
        return None  # no file, or one of another program, which has another schedule


def _shortest_names(folders: list[Path]) -> list[str]:
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            return names
    raise AssertionError("different paths differ somewhere")
