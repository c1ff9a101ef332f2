"""What a training run writes about itself: lines on the terminal, metrics.json, and tensorboard's file if installed."""

import datetime
import importlib.util
import time
from pathlib import Path

import torch
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from dinox.utils.progress import training_progress

_WINDOW = 20  # iterations that a printed loss is the median of, as in detectron2


class ProgressPrinter(EventWriter):
    """One line: iteration, the losses of the last decoder layer, seconds per iteration, learning rate, time left.

    detectron2's printer shows every loss: some forty for a DINO. metrics.json has them all.
    """

    LOSSES = ("loss_class", "loss_bbox", "loss_giou")

    def __init__(self, *, max_iter: int):
        self._max_iter = max_iter
        self._start: tuple[int, float] | None = None

    def write(self) -> None:
        storage = get_event_storage()
        done = min(storage.iter + 1, self._max_iter)
        if self._start is None:
            self._start = (done, time.perf_counter())
        if storage.iter >= self._max_iter or "total_loss" not in storage.latest():
            return
        parts = [f"iteration {done}/{self._max_iter}", f"loss {_median('total_loss'):.3f}"]
        shown = [(name.removeprefix("loss_"), _median(name)) for name in self.LOSSES if name in storage.latest()]
        if shown:
            parts[-1] += f" ({', '.join(f'{name} {value:.3f}' for name, value in shown)})"
        if "lr" in storage.latest():
            parts.append(f"lr {storage.latest()['lr'][0]:.2g}")
        if "time" in storage.latest():
            parts.append(f"{_median('time'):.3f} s/iteration (data {_median('data_time'):.3f})")
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        seconds = self._seconds_per_iteration(done)
        if seconds is not None:
            left = datetime.timedelta(seconds=round(seconds * (self._max_iter - done)))
            parts.append(f"{left} left")
        training_progress.info("  ".join(parts))

    def _seconds_per_iteration(self, done: int) -> float | None:
        """Wall time since the first line, so that evaluations and checkpoints count; at first that of single steps."""
        first, start = self._start
        if done > first:
            return (time.perf_counter() - start) / (done - first)
        history = get_event_storage().histories().get("time")
        return None if history is None else history.global_avg()


def _median(name: str) -> float:
    return get_event_storage().history(name).median(_WINDOW)


def build_writers(output_dir: str | Path, *, max_iter: int) -> list[EventWriter]:
    """The writers for detectron2's PeriodicWriter. ``output_dir`` exists."""
    writers = [ProgressPrinter(max_iter=max_iter), JSONWriter(str(Path(output_dir) / "metrics.json"))]
    if importlib.util.find_spec("tensorboard") is not None:
        writers.append(TensorboardXWriter(str(output_dir)))
    return writers
