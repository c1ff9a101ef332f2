"""What the processes of one training know of each other's end, so that none waits for one that is gone.

The first one that fails says why on a board that all of them watch. One that lost the connection to another looks there
for the cause, and one that is stuck, in its own work or in waiting for the others, is ended. Each also gives signs of
life there, which the next rank looks for: a process that was stopped is missed also where others would wait for hours.
"""

import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, TCPStore

logger = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds in which a process may end by itself when another one has failed: it may be writing a checkpoint."""

_PERIOD = 0.5  # seconds from one look at the board to the next
_PATIENCE = 2.0  # seconds for others to say what happened
_REACHING = timedelta(seconds=30)  # the board
_BOARD = "failure"

_COMMUNICATION = re.compile(
    r"gloo|nccl|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|process group|TCPStore", re.IGNORECASE
)
"""In a RuntimeError of torch: it is the consequence of what happened elsewhere."""

_STOPPED = (
    "no sign of life within {:g} s (train.timeout): the process is stopped (SIGSTOP, a debugger), or its machine hangs"
)

_TIMEOUT = re.compile(r"timed? ?out", re.IGNORECASE)
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


@dataclass(frozen=True)
class Failure:
    """rank: of the process that failed. message: why, in one line. code: its exit code. of_all: do all fail alike?"""

    rank: int
    message: str
    code: int
    of_all: bool = False

    def __str__(self) -> str:
        return self.message if self.of_all else f"rank {self.rank}: {self.message}"


class FloatingPointErrorOnAllRanks(FloatingPointError):
    """What all processes found together, and raise alike."""


class Peers:
    """The board of one process. To be made by all of them, and closed when their work is done.

    Args:
        address, port: of the store that torch's process group has.
        job: a text that tells this start from others that use the same store.
        timeout: seconds after which a collective operation gives up; for messages.
        keeps_store: does the store end with this process?
    """

    def __init__(
        self, *, address: str, port: int, rank: int, world_size: int, job: str, timeout: float, keeps_store: bool
    ):
        # A connection of its own: torch's may be waiting for something.
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_REACHING)
        self._store = PrefixStore(f"dinox.{job}", store)
        self.rank, self.world_size = rank, world_size
        self._timeout, self._keeps_store = timeout, keeps_store
        self._closed = threading.Event()
        self._seen: Failure | None = None
        # Where ranks wait for each other, they notice earlier, by their timeout.
        self._rank_before = _Signs(timeout + GRACE)
        self._looks = 0
        self.failed = False
        """Did this process tell of an error? Then it has to end without waiting for the others."""
        for work in (self._watch, self._guard):
            threading.Thread(target=work, name="dinox-peers", daemon=True).start()

    def close(self) -> None:
        """All is well: nobody is watched any more."""
        self._closed.set()

    def first_failure(self, error: BaseException, message: str, *, code: int) -> Failure:
        """The first failure of all processes: this one's ``error``, unless another one was before.

        ``message``: the error's, in one line. Where the error comes of losing others, and none of them has said why, it
        is about them.
        """
        self.failed = True
        try:
            if not is_lost_connection(error):
                failure = self._post(Failure(self.rank, message, code, isinstance(error, FloatingPointErrorOnAllRanks)))
            else:
                failure = self._wait_for_failure() or self._post(self._failure_of_silent_ones(error))
            self._store.set(f"seen/{self.rank}", "")
            self._wait_for_readers()
        except (DistError, RuntimeError):  # the board is gone
            failure = self._seen or self._loss_of_the_board(code)
        tell_torchrun(str(failure), failure.code)
        return failure

    def _post(self, failure: Failure) -> Failure:
        """Write it unless there is one; returns the one that is there."""
        return _read(self._store.compare_set(_BOARD, "", json.dumps(asdict(failure))))

    def _wait_for_failure(self) -> Failure | None:
        end = time.monotonic() + _PATIENCE
        while self._seen is None and not self._store.check([_BOARD]):
            if time.monotonic() > end:
                return None
            time.sleep(0.05)
        return self._seen or _read(self._store.get(_BOARD))

    def _wait_for_readers(self) -> None:
        """The board is not taken away before the others have read it, if they look."""
        if not self._keeps_store:
            return
        others = [f"seen/{rank}" for rank in range(self.world_size) if rank != self.rank]
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and not self._store.check(others):
            time.sleep(0.05)

    def _loss_of_the_board(self, code: int) -> Failure:
        return Failure(0, "ended without a word (killed, or its machine is gone), or what started the ranks did", code)

    def _failure_of_silent_ones(self, error: BaseException) -> Failure:
        """Who of the others did not notice that something is wrong."""
        self._store.set(f"here/{self.rank}", "")
        time.sleep(_PATIENCE)  # the others wait for the same, or lose their connections as well
        silent = [rank for rank in range(self.world_size) if not self._store.check([f"here/{rank}"])]
        if _TIMEOUT.search(str(error)):
            what = (
                f"no answer within {self._timeout:g} s: it hangs, or takes longer than that for something that others "
                "wait for. If it is only slow, raise train.timeout (seconds)"
            )
        else:
            what = (
                "the connection is lost: it was killed, or its machine is gone. If memory ran out (the system's log "
                "tells), take smaller batches or fewer dataloader.train.num_workers"
            )
        if not silent:
            return Failure(self.rank, f"of another rank: {what}", 1)
        more = f" (ranks {', '.join(map(str, silent))} alike)" if len(silent) > 1 else ""
        return Failure(silent[0], what + more, 1)

    def _watch(self) -> None:
        while self._seen is None and not self._closed.wait(_PERIOD):
            try:
                self._listen()
                if self._store.check([_BOARD]):
                    self._seen = _read(self._store.get(_BOARD))
                    self._store.set(f"seen/{self.rank}", "")
            except (DistError, RuntimeError):
                break
        if not self._closed.wait(GRACE):
            self._end(self._seen or self._loss_of_the_board(1))

    def _listen(self) -> None:
        """Give a sign of life, and post a failure if the rank before gives none."""
        self._store.add(f"alive/{self.rank}", 1)
        other = (self.rank - 1) % self.world_size
        if self._rank_before.is_silent(self._store.add(f"alive/{other}", 0)):
            self._post(Failure(other, _STOPPED.format(self._timeout), 1))
        self._looks += 1

    def _guard(self) -> None:
        """The board itself may be where nothing answers any more: then the watch, and whoever asks it, hangs."""
        board = _Signs(self._timeout + GRACE)
        while not self._closed.wait(_PERIOD):
            if board.is_silent(self._looks):
                self._end(Failure(0, _STOPPED.format(self._timeout), 1))

    def _end(self, failure: Failure) -> None:
        """Nothing else is to be expected of the main thread: it waits for something that does not come."""
        os.write(2, f"dinox: rank {self.rank} is ended, since one has failed. {failure}\n".encode())
        tell_torchrun(str(failure), failure.code)
        for worker in multiprocessing.active_children():
            worker.kill()
        sys.stdout.flush()
        os._exit(1)


class _Signs:
    """Signs of life, a number that grows, looked at every ``_PERIOD``. Looks are counted, not seconds: time in which
    this process was stopped itself is nobody's silence."""

    def __init__(self, limit: float):
        self._limit, self._last, self._looks = limit, -1, 0

    def is_silent(self, number: int) -> bool:
        """Has it been the same for more than ``limit`` seconds?"""
        self._looks = self._looks + 1 if number == self._last else 0
        self._last = number
        return self._looks * _PERIOD > self._limit


def is_lost_connection(error: BaseException) -> bool:
    """Does the error say no more than that other processes do not answer?"""
    if isinstance(error, DistError):
        return True
    return type(error) is RuntimeError and _COMMUNICATION.search(str(error)) is not None


def _read(text: bytes) -> Failure:
    return Failure(**json.loads(text))


def tell_torchrun(message: str, code: int) -> None:
    """Have it in torchrun's last words. Does nothing if this process is none of torchrun's."""
    file = os.environ.get(_ERROR_FILE)
    if not file:
        return
    details = {"py_callstack": message, "timestamp": str(int(time.time()))}
    try:
        with open(file, "w") as stream:
            json.dump({"message": {"message": message, "extraInfo": details, "errorCode": code}}, stream)
    except OSError as error:
        logger.warning("%s cannot be written: %s", file, error.strerror)
