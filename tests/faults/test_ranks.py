"""Row 37: a rank that dies, raises or stalls takes the others with it, in time, and the last line says why.

Started by our own launcher, which is torchrun's, and without any, as by srun. Processes are forked from this warm one.
"""

import contextlib
import os
import signal
import sys
import time
from functools import partial

import pytest

from dinox.cli.running import RunOptions, _run_launched, guarded, start
from dinox.engine import Trainer, peers
from dinox.engine.launching import launch
from tests.engine.conftest import TINY_CONFIG
from tests.engine.tasks import task_of_srun
from tests.modeling.test_distributed import free_port

TIMEOUT = 3  # seconds
LIMIT = 15
STARTERS = ["launch", "srun"]


def rank():
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "-1")))


def raise_in(error, culprit):
    if rank() == culprit:
        raise error


def do_in_third_step(what, monkeypatch):
    run_step = Trainer.run_step

    def step(self):
        if self.iter == 2:
            what()
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", step)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(starter, what): two ranks, each with a worker, of which ``what`` happens to in the third step of ``steps``.

    -> (exit codes, lines on stderr, seconds). No process is left.
    """
    # The processes may take so long in a real run, which may be writing a checkpoint.
    monkeypatch.setattr(peers, "GRACE", 2.0)
    overrides = (
        f"train.output_dir={tmp_path / 'run'}",
        f"train.timeout={TIMEOUT}",
        "train.eval_period=0",
        "train.checkpointer.period=100000",
        "dataloader.train.num_workers=1",
    )
    group = []

    def run_both(starter, what, *, steps=100000):
        options = RunOptions(config_file=TINY_CONFIG, overrides=(*overrides, f"train.max_iter={steps}"))
        do_in_third_step(what, monkeypatch)
        begin = time.monotonic()
        if starter == "launch":
            own = [fork(partial(launch_both, options), tmp_path, group)]
        else:
            port = free_port()
            own = [fork(partial(as_task, options, number, port), tmp_path, group) for number in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in own]
        seconds = time.monotonic() - begin
        assert wait_for_end(group[0], 10), "a process is left"
        return codes, (tmp_path / "stderr").read_text().strip().splitlines(), seconds

    yield run_both
    for leader in group[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def fork(work, folder, group):
    """A process in the group of the first one."""
    process = os.fork()
    if process:
        if not group:
            group.append(process)
            with contextlib.suppress(OSError):
                os.setpgid(process, process)
        return process
    os.setpgid(0, group[0] if group else 0)
    output = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    with contextlib.suppress(OSError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    code = 1
    try:
        code = work()
    except BaseException:  # what an interpreter does
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def launch_both(options):
    return guarded(lambda: launch(_run_launched, options, num_processes=2, start_method="fork"))


def as_task(options, number, port):
    os.environ |= task_of_srun(number, port)
    return start(options)


def wait_for_end(group, seconds):
    """Of all processes of a group. Workers of data loaders notice within 5 seconds that they are alone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.timeout(60)
@pytest.mark.parametrize("starter", STARTERS)
@pytest.mark.parametrize("culprit", [0, 1])
def test_row_37_a_rank_that_is_killed(run, starter, culprit):
    def die():
        if rank() == culprit:
            os.kill(os.getpid(), signal.SIGKILL)

    codes, lines, seconds = run(starter, die)
    assert all(code != 0 for code in codes) and seconds < LIMIT
    if starter == "launch" or culprit == 1:  # the board was kept by what was killed
        assert f"rank {culprit}" in lines[-1] and ("killed" in lines[-1]), lines


@pytest.mark.timeout(60)
@pytest.mark.parametrize("starter, culprit", [("launch", 1), ("srun", 0), ("srun", 1)])
def test_row_37_a_rank_with_an_error_of_the_user(run, starter, culprit):
    codes, lines, seconds = run(starter, partial(raise_in, ValueError("cat.jpg: no such class"), culprit))
    assert 2 in codes and 0 not in codes and seconds < LIMIT
    assert f"rank {culprit}: cat.jpg: no such class" in lines[-1], lines
    assert not any("Traceback" in line for line in lines), "\n".join(lines)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("starter", STARTERS)
def test_row_37_a_rank_with_an_error_of_ours(run, starter):
    codes, lines, seconds = run(starter, partial(raise_in, RuntimeError("shapes do not match"), 1))
    assert 0 not in codes and seconds < LIMIT
    assert any("Traceback" in line for line in lines)
    if starter == "launch":
        assert "rank 1: shapes do not match" in lines[-1], lines
    assert any("rank 1: shapes do not match" in line for line in lines)


@pytest.mark.timeout(60)
def test_row_37_a_rank_with_an_error_in_the_last_step(run):
    """The others wait for it; it must not wait for them, in an evaluation that ends the run."""
    codes, lines, seconds = run("launch", partial(raise_in, RuntimeError("shapes do not match"), 1), steps=3)
    assert 0 not in codes and seconds < LIMIT
    assert "rank 1: shapes do not match" in lines[-1], lines


@pytest.mark.timeout(60)
@pytest.mark.parametrize("starter", STARTERS)
def test_row_37_a_rank_that_stalls(run, starter):
    codes, lines, seconds = run(starter, lambda: time.sleep(600) if rank() == 1 else None)
    assert 0 not in codes and seconds < LIMIT
    assert f"rank 1: no answer within {TIMEOUT} s" in lines[-1] and "train.timeout" in lines[-1], lines


@pytest.mark.timeout(60)
def test_row_37_an_error_of_all_ranks_is_printed_once(run):
    codes, lines, _ = run("srun", partial(exec, "raise ValueError('lr is NaN')"))
    assert codes == [2, 2], lines
    assert len([line for line in lines if "lr is NaN" in line]) == 1, lines


@pytest.mark.timeout(60)
def test_row_37_what_all_ranks_found_together_is_told_of_none(run):
    def diverge():
        raise peers.FloatingPointErrorOnAllRanks("lr is NaN")

    codes, lines, _ = run("srun", diverge)
    assert codes == [2, 2], lines
    assert len(lines) == 1 and lines[0].startswith("dinox: error: lr is NaN"), lines


@pytest.mark.timeout(60)
@pytest.mark.parametrize("starter", STARTERS)
def test_row_38_sigterm_to_all_finishes_the_step_and_saves(run, starter, tmp_path):
    """As torchrun and SLURM send it: what started the processes gets it, and each of them, more than once."""

    def signal_all():
        if rank() == 0:
            os.killpg(0, signal.SIGTERM)

    codes, lines, _ = run(starter, signal_all)
    assert set(codes) == {143}, lines
    assert [line for line in lines if "stopped by SIGTERM after" in line]
    assert [file.name for file in (tmp_path / "run").glob("model*")] == ["model_0000002.pth"]
