"""The checkpoints of a run, in the order in which it wrote them."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dinox.checkpoint.reading import local_file, read_checkpoint
from dinox.checkpoint.run_files import BEST

_PATTERN = "model_*.pth"  # detectron2's names


@dataclass(frozen=True)
class RunCheckpoint:
    """name: the shortest that tells it from the others. iterations: done when it was written; epochs: likewise. None
    for what the file does not say."""

    path: str
    name: str
    iterations: int | None = None
    epochs: float | None = None


def find_checkpoints(places: Sequence[str | os.PathLike]) -> list[RunCheckpoint]:
    """The checkpoints that are named, and those in folders of runs, by their iterations.

    Where a file does not say how many, all stay in the order in which they are given. A folder's ``model_final.pth``
    stands for the one of the last iteration, which has the same weights.

    Raises ValueError for a folder without checkpoints, and two files of one iteration, which are not of one run;
    CheckpointError for a file that cannot be read.
    """
    found: list[RunCheckpoint] = []
    for place in map(os.fspath, places):
        found += _in_folder(place) if os.path.isdir(place) else [_read(place)]
    if all(checkpoint.iterations is not None for checkpoint in found):
        found.sort(key=lambda checkpoint: checkpoint.iterations)
    for first, second in pairwise(found):
        if first.iterations is not None and first.iterations == second.iterations:
            raise ValueError(
                f"expected checkpoints of one run, got two of iteration {first.iterations}: {first.path} and "
                f"{second.path}. Leave one out, or analyze each run on its own"
            )
    names = [Path(checkpoint.path).name for checkpoint in found]
    if len(set(names)) < len(names):
        names = [checkpoint.path for checkpoint in found]
    return [dataclasses.replace(checkpoint, name=name) for checkpoint, name in zip(found, names, strict=True)]


def _in_folder(folder: str) -> list[RunCheckpoint]:
    # The best one is one of the others, or was before they were removed: it is no point of a run's course of its own.
    paths = sorted(str(path) for path in Path(folder).glob(_PATTERN) if path.stem != BEST)
    if not paths:
        raise ValueError(f"{folder}: no {_PATTERN} in it: expected checkpoints, or the output folder of a training run")
    return _without_doubles(map(_read, paths))


def _without_doubles(checkpoints: Iterable[RunCheckpoint]) -> list[RunCheckpoint]:
    """Of one iteration the last one, as ``model_final.pth``."""
    by_iteration: dict[int | str, RunCheckpoint] = {}
    for checkpoint in checkpoints:
        by_iteration[checkpoint.path if checkpoint.iterations is None else checkpoint.iterations] = checkpoint
    return list(by_iteration.values())


def _read(path: str) -> RunCheckpoint:
    file = local_file(path)
    checkpoint = read_checkpoint(file.path, trusted=file.verified, mapped=True)
    last = checkpoint.get("iteration")
    return RunCheckpoint(
        path=path,
        name=path,
        iterations=last + 1 if isinstance(last, int) else None,
        epochs=_number(checkpoint, "trainer", "hooks", "RunClock", "epoch"),
    )


def _number(entry: Any, *keys: str) -> float | None:
    for key in keys:
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return float(entry) if isinstance(entry, int | float) else None
