"""What a training run writes about itself: lines on the terminal, metrics.json, and tensorboard's file if installed.

metrics.json has one JSON object per line: ``iteration`` (from 0; those after the last step have the number of all
iterations), the losses (medians of the last 20 iterations), ``lr``, ``grad_norm``, seconds per step, evaluations under
``bbox/AP`` and so on, and RunClock's ``epoch`` and ``wall_time``. Counts (``skipped_steps``), ``lr`` and
``grad_scale`` are those of the iteration. A resumed run appends to it.
"""

import datetime
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from dinox.utils.progress import training_progress

_WINDOW = 20  # iterations that a printed loss is the median of, as in detectron2


class RunClock(HookBase):
    """Tells the writers how far a run is, in numbers in which runs of other batch sizes and machines can be compared.

    ``epoch``: of the schedule, counting from 0; left out where a config has no epochs. ``wall_time``: seconds since
    training began, evaluations and checkpoints included. Both go through checkpoints: a resumed run counts on, without
    the time in which it did not run. Resuming from a checkpoint without them leaves ``wall_time`` out.

    Register it after the hooks whose time shall count, and before the one that writes.
    """

    def __init__(self, *, epochs_per_iteration: float | None):
        self._epochs_per_iteration = epochs_per_iteration
        self._state: dict[str, float | None] | None = None  # at the start of this process

    def before_train(self) -> None:
        self._start = time.perf_counter()
        if self._state is None:
            start = self.trainer.start_iter
            self._state = {"epoch": start * (self._epochs_per_iteration or 0), "seconds": None if start else 0.0}

    def after_step(self) -> None:
        now = self.state_dict()
        if self._epochs_per_iteration is not None:
            self.trainer.storage.put_scalar("epoch", now["epoch"], smoothing_hint=False)
        if now["seconds"] is not None:
            self.trainer.storage.put_scalar("wall_time", now["seconds"], smoothing_hint=False)

    after_train = after_step  # the last evaluation comes after the last step

    def state_dict(self) -> dict[str, float | None]:
        steps = min(self.trainer.iter + 1, self.trainer.max_iter) - self.trainer.start_iter
        epoch, seconds = self._state["epoch"], self._state["seconds"]
        return {
            "epoch": epoch + steps * (self._epochs_per_iteration or 0),
            "seconds": None if seconds is None else seconds + time.perf_counter() - self._start,
        }

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._state = dict(state)


class ProgressPrinter(EventWriter):
    """One line: iteration, the losses of the last decoder layer, seconds per iteration, learning rate, time left.

    detectron2's printer shows every loss: some forty for a DINO. metrics.json has them all.
    """

    LOSSES = ("loss_class", "loss_bbox", "loss_giou")

    def __init__(self, *, max_iter: int, has_ended: Callable[[], bool] = lambda: False):
        """``has_ended``: does a run end before ``max_iter``, so that no time is left?"""
        self._max_iter, self._has_ended = max_iter, has_ended
        self._start: tuple[int, float] | None = None

    def write(self) -> None:
        storage = get_event_storage()
        done = min(storage.iter + 1, self._max_iter)
        if self._start is None:
            self._start = (done, time.perf_counter())
        if storage.iter >= self._max_iter or "total_loss" not in storage.latest():
            return
        parts = [f"iteration {done}/{self._max_iter}", self._losses()]
        if "lr" in storage.latest():
            parts.append(f"lr {storage.latest()['lr'][0]:.2g}")
        if "time" in storage.latest():
            parts.append(f"{_median('time'):.3f} s/iteration (data {_median('data_time'):.3f})")
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        seconds = self._seconds_per_iteration(done)
        if seconds is not None and not self._has_ended():
            left = datetime.timedelta(seconds=round(seconds * (self._max_iter - done)))
            parts.append(f"{left} left")
        training_progress.info("  ".join(parts))

    def _losses(self) -> str:
        storage = get_event_storage()
        if storage.latest()["total_loss"][1] < storage.iter:  # not finite, or the error that ends training
            return "skipped (no step was taken)"
        text = f"loss {_median('total_loss'):.3f}"
        shown = [(name.removeprefix("loss_"), _median(name)) for name in self.LOSSES if name in storage.latest()]
        return text + (f" ({', '.join(f'{name} {value:.3f}' for name, value in shown)})" if shown else "")

    def _seconds_per_iteration(self, done: int) -> float | None:
        """Wall time since the first line, so that evaluations and checkpoints count; at first that of single steps."""
        first, start = self._start
        if done > first:
            return (time.perf_counter() - start) / (done - first)
        history = get_event_storage().histories().get("time")
        return None if history is None else history.global_avg()


def _median(name: str) -> float:
    return get_event_storage().history(name).median(_WINDOW)


def build_writers(
    output_dir: str | Path, *, max_iter: int, has_ended: Callable[[], bool] = lambda: False
) -> list[EventWriter]:
    """The writers for detectron2's PeriodicWriter. ``output_dir`` exists. ``has_ended``: see ``ProgressPrinter``."""
    writers = [
        ProgressPrinter(max_iter=max_iter, has_ended=has_ended),
        JSONWriter(str(Path(output_dir) / "metrics.json")),
    ]
    if importlib.util.find_spec("tensorboard") is not None:
        writers.append(TensorboardXWriter(str(output_dir)))
    return writers
