"""Ctrl-C and SIGTERM end a run after the step under way, with a checkpoint."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_CODES = tuple(128 + number for number in SIGNALS)
"""Of processes that a signal stopped after their step."""


_SAME = 2.0
"""Seconds: of several processes, each may get one Ctrl-C twice, from the terminal and from what started it."""


class TrainingStopped(SystemExit):
    """A signal ended the run; a checkpoint holds all that was done. ``code``: 128 + the signal's number, as in shells:
    143 for SIGTERM, 130 for Ctrl-C. Where nobody catches it, the process ends with that code."""

    def __init__(self, number: int, *, steps: int | None = None):
        super().__init__(128 + number)
        after = "" if steps is None else f" after {steps} iterations"
        self.message = f"stopped by {signal.Signals(number).name}{after}; --resume continues"


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing is left to be finished: what Ctrl-C does there."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, a SIGTERM that nobody waits for (before training, in an evaluation) raises Terminated in this process; a
    second one ends it at once. Does nothing outside of the main thread, and where SIGTERM has a meaning already.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == process:
            raise Terminated
        signal.raise_signal(number)  # a worker, which has inherited this

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StoppedEarly(SystemExit):
    """Training ended before its last iteration, as it was asked to; all is saved. No error: ``code`` is 0."""

    def __init__(self) -> None:
        super().__init__(0)


class StopSignals:
    """Between ``install`` and ``remove``, a first signal is noted, and a second one does what it would have done.

    Processes that are forked meanwhile inherit that. Does nothing outside of the main thread, where Python has no
    signals.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._received_at = 0.0
        self._before: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._at_once = False

    def install(self) -> None:
        if comm.get_world_size() > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")  # flags are on the CPU
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {each: signal.signal(each, self._note) for each in SIGNALS}

    def remove(self) -> None:
        """After a signal, torch's own watch for the end of workers stays away: they may be ending just now. Then it
        takes some seconds more to notice."""
        set_handlers(self._before)
        self._before = {}

    @property
    def received(self) -> int | None:
        """The signal's number. Of this process alone."""
        return self._received

    def received_by_any(self) -> int | None:
        """The same on all ranks, which have to call it together: they stop after the same step."""
        if self._group is None:
            return self._received
        number = torch.tensor(self._received or 0)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number) or None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What runs inside, as an evaluation between two steps, need not be finished: a signal raises TrainingStopped.
        Unless there are other ranks, which would wait."""
        self._at_once = self._group is None
        try:
            if self._at_once and self._received is not None:
                raise TrainingStopped(self._received)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: Any) -> None:
        if self._received is not None:
            if self._group is not None and time.monotonic() - self._received_at < _SAME:
                return
            self.remove()
            signal.raise_signal(number)
            return
        self._received, self._received_at = number, time.monotonic()
        # Where the workers got the signal too, torch would raise in the midst of the step. What they have read ahead
        # may be enough to finish it; else it raises when the next batch does not come.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._at_once:
            raise TrainingStopped(number)
        if comm.is_main_process():
            # No logging: the signal may have come while a line was being written.
            text = f"\ndinox: {signal.Signals(number).name}: finishing this step and saving; once more to end at once\n"
            os.write(sys.stderr.fileno() if _has_descriptor() else 2, text.encode())


def set_handlers(handlers: Mapping[int, Any]) -> None:
    """By number of the signal; None is what Python says of a handler that it did not set."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _has_descriptor() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced, as in tests and notebooks
        return False
    return True
