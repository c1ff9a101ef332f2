"""The hook that writes checkpoints: detectron2's, with the state of all ranks, on signals, on disks that fill up."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

from dinox.checkpoint import Checkpointer, CheckpointError
from dinox.data.workers import is_lost_worker, lost_worker
from dinox.engine.run_state import RunState
from dinox.engine.stopping import StopSignals, TrainingStopped
from dinox.utils.random_state import unchanged_random_state

logger = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Checkpoints in a row that cannot be written; then training ends. A disk may have been cleared until the next one."""


class RunCheckpoints(hooks.PeriodicCheckpointer):
    """Writes a checkpoint every ``period`` iterations, at the end, and when a signal asks to stop.

    To be registered on all ranks, which it collects the states of; the first one writes. After the hooks whose state is
    to be in the checkpoint, and before that of evaluation.

    A checkpoint that cannot be written leaves the earlier ones, and training goes on with a warning, unless it is the
    last one, or it happens ``MOST_FAILURES`` times in a row: then a CheckpointError is raised, on all ranks.

    Args:
        max_to_keep: numbered checkpoints; older ones are removed when a new one is whole, those of earlier processes of
            a resumed run included. None: all.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        *,
        run_state: RunState,
        max_to_keep: int | None = None,
        file_prefix: str = "model",
    ):
        super().__init__(checkpointer, period, max_to_keep=max_to_keep, file_prefix=file_prefix)
        self.run_state = run_state
        self._signals = StopSignals()
        self._gathered: tuple[int, list[dict[str, Any]]] | None = None
        self._failures = 0
        self._done: int | None = None  # iterations, of this process
        self._saved: int | None = None

    def before_train(self) -> None:
        super().before_train()
        if self.max_to_keep is not None and comm.is_main_process():
            self.recent_checkpoints = self._earlier_files(self.trainer.iter)
        self._signals.install()
        self.run_state.set_random_numbers(self.trainer.iter)

    def after_step(self) -> None:
        self._done = self.trainer.iter + 1
        stop = self._signals.received_by_any()
        if self._done % self.period == 0 or self._done >= self.max_iter or stop is not None:
            self._save_on_all_ranks(is_needed=self._done >= self.max_iter or stop is not None)
        if stop is not None and self._done < self.max_iter:
            raise TrainingStopped(stop, steps=self._done)

    def after_train(self) -> None:
        """Also when training failed. What a signal cut off between two steps is not saved yet."""
        try:
            self._save_what_was_cut_off()
        finally:
            self._signals.remove()

    def _save_what_was_cut_off(self) -> None:
        if self._signals.received is None or comm.get_world_size() > 1 or self._done in (None, self._saved):
            return
        if self.trainer.iter == self._done and self.run_state.lost_workers:
            self.trainer.iter -= 1  # the next step had begun, but changed nothing
        if self.trainer.iter == self._done - 1:
            self._save_on_all_ranks(is_needed=True)

    @contextmanager
    def explained_losses_of_workers(self) -> Iterator[None]:
        """Around training. Raises TrainingStopped where a signal to all processes ended them, and DataError else."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost_worker(error):
                raise
            if self._signals.received is not None and self._saved == self._done is not None:
                raise TrainingStopped(self._signals.received, steps=self._saved) from error
            consequence = ". Saved checkpoints are intact: --resume continues"
            raise lost_worker(error, loader="dataloader.train", consequence=consequence) from error

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """For an evaluation between two steps: it draws from the random numbers without changing those of training, and
        a signal ends it at once."""
        with unchanged_random_state(), self._signals.at_once():
            yield

    def save_final(self) -> None:
        """After a step with which training ends, though it is not the last one of the schedule. Raises
        CheckpointError."""
        self._done = self.trainer.iter + 1
        self._save_on_all_ranks(is_needed=True, name=f"{self.file_prefix}_final")

    def _save_on_all_ranks(self, *, is_needed: bool, name: str | None = None) -> None:
        """name: of the file; None: as the schedule has it. Raises CheckpointError if it fails, and ``is_needed`` or too
        often."""
        iteration = self._done - 1
        if comm.get_world_size() > 1:
            self._gathered = (iteration, comm.gather(self.run_state.of_rank()))
        error = None
        with self.checkpointer.gathered():
            if comm.is_main_process():
                try:
                    self._save(iteration, name)
                except CheckpointError as caught:
                    error = str(caught)
        error = comm.all_gather(error)[0]
        if error is None:
            self._failures, self._saved = 0, self._done
            return
        self._failures += 1
        if is_needed or self._failures >= MOST_FAILURES:
            raise CheckpointError(error)
        logger.error("NO CHECKPOINT WRITTEN (%d of at most %d in a row): %s", self._failures, MOST_FAILURES, error)

    def _save(self, iteration: int, name: str | None) -> None:
        if name is None and (self._done % self.period == 0 or self._done >= self.max_iter):
            self.step(iteration)
        else:
            self.checkpointer.save(name or f"{self.file_prefix}_{iteration:07d}", iteration=iteration)

    def _earlier_files(self, start: int) -> list[str]:
        """Numbered checkpoints of what came before this process, the oldest first."""
        pattern = re.compile(re.escape(self.file_prefix) + r"_(\d{7,})\.pth")
        found = [(pattern.fullmatch(path.name), str(path)) for path in Path(self.checkpointer.save_dir).glob("*.pth")]
        return [
            path for number, path in sorted((int(match[1]), path) for match, path in found if match) if number < start
        ]

    def state_dict(self) -> Mapping[str, Any]:
        """Of several ranks only when this hook saves, which has asked the others."""
        if self._done == self.trainer.start_iter and self.run_state.resumed is not None:
            return self.run_state.of_run(self.run_state.resumed)  # the first batch was read, but not trained on
        if comm.get_world_size() == 1:
            return self.run_state.of_run([self.run_state.of_rank()])
        if self._gathered is None or self._gathered[0] != self.trainer.iter:
            return {}
        return self.run_state.of_run(self._gathered[1])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.run_state.load(state)
