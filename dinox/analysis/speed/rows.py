"""One row of ``dinox bench step`` and ``dinox bench infer``: a config's speed and memory, measured in a process of its
own, so that its peak of memory is not an earlier row's."""

import multiprocessing
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from dinox.analysis.complexity import DETECTION_SIZE
from dinox.analysis.inputs import OBJECTS_PER_IMAGE, synthetic_inputs
from dinox.analysis.model_report import build_optimizer
from dinox.analysis.parts import BETWEEN
from dinox.analysis.timing import POSTPROCESSING, PREPROCESSING, PhaseTimes, Repetitions, profile_phases
from dinox.config import load_config
from dinox.engine.model_settings import apply_model_settings, check_model_settings
from dinox.engine.trainer import AUTOCAST_DTYPES

Task = Literal["step", "infer"]

_COLUMNS = {
    "memory_builder": "encoder",
    "query_selection": "queries",
    "query_groups": "queries",
    "heads": "decoder",
    "auxiliary_heads": "auxiliary",
    "criterion": "losses",
    "optimizer step": "optimizer",
    PREPROCESSING: "other",
    BETWEEN: "other",
    POSTPROCESSING: "other",
}
"""Phases that share a column, or have another name there; all others are columns of their own."""

_ORDER = (
    "data",
    "backbone",
    "encoder",
    "queries",
    "decoder",
    "auxiliary",
    "matching",
    "losses",
    "backward",
    "optimizer",
)


@dataclass(frozen=True)
class Workload:
    """What every row does. task: "step" (of training, optimizer included) or "infer" (detection).

    size: (height, width) of images of noise with ``objects`` objects each; None: batches of the config's own dataset,
    with its batch size. threads: of the CPU; None: torch's number. device: "cpu" or "cuda".
    """

    task: Task
    size: tuple[int, int] | None = DETECTION_SIZE
    batch_size: int = 1
    objects: int = OBJECTS_PER_IMAGE
    dtype: str = "fp32"
    threads: int | None = None
    device: str = "cpu"
    steps: int = 10
    warmup: int = 2

    def __post_init__(self):
        numbers = {"size": min(self.size or [1]), "batch_size": self.batch_size, "steps": self.steps}
        for name, value in {**numbers, "threads": 1 if self.threads is None else self.threads}.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name, value in (("objects", self.objects), ("warmup", self.warmup)):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        for name, value, choices in (("task", self.task, ("step", "infer")), ("dtype", self.dtype, AUTOCAST_DTYPES)):
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class SpeedRow:
    """phases: seconds, medians over steps. seconds: of a whole step. peak_bytes: of memory: on the CPU the process's
    resident set, on a GPU what tensors took."""

    config: str
    overrides: tuple[str, ...]
    phases: dict[str, float]
    seconds: float
    images_per_second: float
    steps_per_second: float
    peak_bytes: int
    threads: int


def measure_speed_apart(
    config: str, overrides: Sequence[str], workload: Workload, *, allow_targets: Sequence[str] = ()
) -> SpeedRow:
    """:func:`measure_speed` in a fresh process. config: a file, or a name in the model zoo."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(measure_speed, config, list(overrides), workload, allow_targets=allow_targets).result()


def measure_speed(
    config: str, overrides: Sequence[str], workload: Workload, *, allow_targets: Sequence[str] = ()
) -> SpeedRow:
    """The peak of memory is that of the process so far, so call it through :func:`measure_speed_apart`.

    Raises ValueError for a config without a model, or without data where these are asked for.
    """
    if workload.threads is not None:
        torch.set_num_threads(workload.threads)
    cfg = load_config(config, list(overrides), allow_targets=allow_targets)
    if "model" not in cfg:
        raise ValueError(f"{config}: this config has no model to measure (found: {', '.join(cfg)})")
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(workload.device)
    if "train" in cfg:
        check_model_settings(cfg.train)
        apply_model_settings(model, cfg.train, training=workload.task == "step")
    times = profile_phases(
        model,
        **_batches(config, cfg, workload),
        optimizer=build_optimizer(cfg, model) if workload.task == "step" else None,
        precision=workload.dtype,
        repetitions=Repetitions(workload.warmup, workload.steps, workload.steps, budget=float("inf")),
    )
    return SpeedRow(
        config=config,
        overrides=tuple(overrides),
        phases=times.seconds,
        seconds=times.total,
        images_per_second=_batch_size(cfg, workload) / times.total,
        steps_per_second=1 / times.total,
        peak_bytes=_peak_bytes(times),
        threads=torch.get_num_threads(),
    )


def phase_columns(phases: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase -> by column of the table, in a step's order, "other" last."""
    columns: dict[str, float] = {}
    for phase, seconds in phases.items():
        column = _COLUMNS.get(phase, phase)
        columns[column] = columns.get(column, 0.0) + seconds
    names = [name for name in _ORDER if name in columns]
    names += [name for name in columns if name not in (*_ORDER, "other")]
    return {name: columns.get(name, 0.0) for name in [*names, "other"]}


def _batches(config: str, cfg: DictConfig, workload: Workload) -> dict:
    """``inputs`` or ``loader`` of :func:`profile_phases`."""
    if workload.size is not None:
        num_classes = cfg.model.get("num_classes", 1)
        inputs = synthetic_inputs(
            size=workload.size,
            batch_size=workload.batch_size,
            num_classes=num_classes,
            objects_per_image=workload.objects,
        )
        return {"inputs": inputs}
    key = "train" if workload.task == "step" else "test"
    if key not in cfg.get("dataloader", {}):
        raise ValueError(f"{config}: there is no dataloader.{key} to take images from; give --size for images of noise")
    return {"loader": _Finite(instantiate(cfg.dataloader[key]), workload.warmup + workload.steps)}


class _Finite:
    """As many batches of an endless loader as are used, so that its workers end."""

    def __init__(self, loader: Iterable, most: int):
        self.loader, self.most = loader, most

    def __iter__(self):
        return islice(self.loader, self.most)


def _batch_size(cfg: DictConfig, workload: Workload) -> int:
    if workload.size is not None:
        return workload.batch_size
    return cfg.dataloader.train.total_batch_size if workload.task == "step" else 1


def _peak_bytes(times: PhaseTimes) -> int:
    if times.peak_bytes is not None:
        return times.peak_bytes
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
