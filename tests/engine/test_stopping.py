"""SIGTERM outside of training steps. Inside: test_resuming.py and the faults."""

import os
import signal
import sys

import pytest

from dinox.cli.running import guarded
from dinox.engine.stopping import Terminated, terminable


def test_sigterm_is_one_line_and_its_exit_code(capsys):
    def work():
        with terminable():
            signal.raise_signal(signal.SIGTERM)

    assert guarded(work) == 143
    assert capsys.readouterr().err == "dinox: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_sigterm_ends_the_process_at_once():
    process = os.fork()
    if process == 0:
        with terminable():
            try:
                signal.raise_signal(signal.SIGTERM)
            except Terminated:
                signal.raise_signal(signal.SIGTERM)
        os._exit(77)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGTERM


def test_a_worker_that_inherits_the_handler_just_ends():
    with terminable():
        process = os.fork()
        if process == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(77)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize("meaning", [signal.SIG_IGN, lambda number, frame: sys.exit(3)])
def test_a_meaning_that_sigterm_has_already_stays(meaning):
    before = signal.signal(signal.SIGTERM, meaning)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGTERM) is meaning
    finally:
        signal.signal(signal.SIGTERM, before)
