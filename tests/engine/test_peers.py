"""A process that is stopped says nothing; the others notice by themselves, wherever they are waiting."""

import contextlib
import os
import signal
import time
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from dinox.engine import peers
from dinox.engine.peers import Peers
from tests.modeling.test_distributed import free_port

TIMEOUT = 0.5
TIME_TO_START = 5


@pytest.fixture
def fork(monkeypatch):
    monkeypatch.setattr(peers, "GRACE", 0.5)
    monkeypatch.setattr(peers, "_PERIOD", 0.05)
    children = []

    def start(work):
        process = os.fork()
        if process == 0:
            try:
                work()
            finally:
                os._exit(77)  # in which case it was not ended by its peers
        children.append(process)
        return process

    yield start
    for process in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def keep_board(port):
    store = TCPStore("localhost", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    time.sleep(30)
    del store


def work_alone(rank, port):
    """Nothing of it asks for the others."""
    place = {"address": "localhost", "port": port, "rank": rank, "world_size": 2}
    own = Peers(**place, job="", timeout=TIMEOUT, keeps_store=False)
    time.sleep(30)
    own.close()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("stopped", ["a rank", "the board"])
def test_what_is_stopped_is_missed(fork, capfd, stopped):
    port = free_port()
    board = fork(lambda: keep_board(port))
    ranks = [fork(lambda rank=rank: work_alone(rank, port)) for rank in range(2)]
    time.sleep(1.5)
    assert [os.waitpid(rank, os.WNOHANG)[0] for rank in ranks] == [0, 0], "they are alive, longer than the limit"
    os.kill(board if stopped == "the board" else ranks[0], signal.SIGSTOP)
    begin = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(ranks[1], 0)[1]) == 1
    assert TIMEOUT < time.monotonic() - begin < TIME_TO_START
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "rank 0: no sign of life within 0.5 s (train.timeout)" in last, last
