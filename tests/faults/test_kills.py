"""Kills, full disks, broken tags and signals: rows 32, 33, 34 and 38. Processes are forked from this warm one."""

import contextlib
import errno
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import PeriodicCheckpointer
from torch import nn

from dinox.checkpoint import Checkpointer, CheckpointError, run_files
from dinox.cli.running import guarded
from dinox.config import load_config
from dinox.data import DetectionMapper
from dinox.engine import Trainer, evaluate, train
from dinox.engine.run_checkpoints import RunCheckpoints
from dinox.utils import whole_files
from tests.engine.conftest import TINY_CONFIG
from tests.engine.tiny import TinyDetector

POINTS = 50


class Numbers(nn.Module):
    """Weights that tell in which iteration they were saved."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(97)) for _ in range(10))

    def fill(self, value: float) -> None:
        with torch.no_grad():
            for part in self.parts:
                part.fill_(value)


class Trained:
    """Stands for the trainer."""

    def state_dict(self):
        return {"iteration": 0}

    def load_state_dict(self, state):
        pass


def make_checkpointer(folder):
    return Checkpointer(Numbers(), str(folder), trainer=Trained())


def save(folder, iteration):
    """As in training with train.checkpointer.max_to_keep=1: the checkpoint before is removed."""
    checkpointer = make_checkpointer(folder)
    checkpointer.model.fill(iteration)
    periodic = PeriodicCheckpointer(checkpointer, period=1, max_to_keep=1)
    before = folder / f"model_{iteration - 1:07d}.pth"
    periodic.recent_checkpoints = [str(before)] if before.exists() else []
    periodic.step(iteration)


def load(folder):
    """The iteration that would be resumed. Its file has to be whole."""
    checkpointer = make_checkpointer(folder)
    assert checkpointer.has_checkpoint()
    content = checkpointer.load(checkpointer.get_checkpoint_file(), purpose="resume")
    values = torch.cat([part.detach() for part in checkpointer.model.parts]).unique()
    assert values.tolist() == [content["iteration"]]
    return content["iteration"]


def forked(work):
    """The exit status of a process that does the work."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return process


class Killer:
    """Kills this process at the n-th of the points that saving passes: in the middle of each write to a file, and
    before and after everything else that changes the disk."""

    def __init__(self, point: int = -1):
        self.point, self.passed = point, 0

    def pass_by(self, before_death=lambda: None):
        if self.passed == self.point:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def around(self, function):
        def call(*args, **kwargs):
            self.pass_by()
            result = function(*args, **kwargs)
            self.pass_by()
            return result

        return call

    def install(self, patch):
        killer = self

        class File:
            def __init__(self, *args):
                self.file = open(*args)  # noqa: SIM115

            def write(self, data):
                def half():
                    self.file.write(bytes(data)[: len(bytes(data)) // 2])
                    self.file.flush()

                killer.pass_by(half)
                return self.file.write(data)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

            def __getattr__(self, name):
                return getattr(self.file, name)

        patch.setattr(run_files, "open", File, raising=False)
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "remove"), (Path, "write_text")):
            patch.setattr(owner, name, self.around(getattr(owner, name)))


def test_row_32_a_kill_at_any_point_of_saving_leaves_a_checkpoint_that_loads(tmp_path):
    save(tmp_path, 0)
    counter = Killer()
    with pytest.MonkeyPatch.context() as patch:
        counter.install(patch)
        save(tmp_path, 1)
    points = counter.passed
    assert points >= POINTS
    last_points = range(points - 12, points)  # from the file's rename to the removal of the one before
    chosen = sorted({*last_points, *(round(i * (points - 1) / (POINTS - 1)) for i in range(POINTS))})
    whole = 1
    for point in chosen:

        def be_killed(point=point, iteration=whole + 1):
            with pytest.MonkeyPatch.context() as patch:
                Killer(point).install(patch)
                save(tmp_path, iteration)

        _, status = os.waitpid(forked(be_killed), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, point
        found = load(tmp_path)
        assert found in (whole, whole + 1), point
        whole = found
    run_files.remove_leftovers_of_killed(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".pth", ""}  # the tag has none


@pytest.mark.parametrize("seed", range(10))
def test_row_32_real_kills_at_random_moments(tmp_path, seed):
    save(tmp_path, 0)

    def save_on():
        for iteration in range(1, 10_000):
            save(tmp_path, iteration)

    process = forked(save_on)
    time.sleep(random.Random(seed).uniform(0.002, 0.08))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    load(tmp_path)


# ------------------------------------------------------------------------------------------------ files that are broken


def spoil(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":  # in the middle of a tensor: the file is as long as before, and torch.load takes it
        content[content.index(torch.full((97,), 2.0).numpy().tobytes()) + 8] ^= 1
    elif how == "empty":
        content = b""
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_row_32_a_broken_file_is_noticed_and_the_newest_whole_one_taken(tmp_path, caplog, how):
    for iteration in range(3):
        checkpointer = make_checkpointer(tmp_path)
        checkpointer.model.fill(iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    if how == "flipped":
        assert torch.load(tmp_path / "model_0000002.pth", weights_only=True)["iteration"] == 2
    spoil(tmp_path / "model_0000002.pth", how)
    assert load(tmp_path) == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "Going back to the newest checkpoint that is whole" in warning and "model_0000002.pth" in warning


@pytest.mark.parametrize("tag", ["", "model_0000009.pth\n", None, "\0" * 17])
def test_row_34_an_empty_stale_or_missing_tag(tmp_path, caplog, tag):
    save(tmp_path, 3)
    if tag is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(tag)
    (tmp_path / "weights.pth").write_bytes(b"of somebody else")
    assert load(tmp_path) == 3
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("tag", ["../model_0000003.pth", "/etc/passwd", ".."])
def test_row_34_a_tag_that_leads_out_of_the_folder(tmp_path, tag):
    save(tmp_path, 3)
    (tmp_path / "last_checkpoint").write_text(tag)
    with pytest.raises(CheckpointError, match="last_checkpoint: expected the name of a file in"):
        make_checkpointer(tmp_path).get_checkpoint_file()


def test_row_34_the_newest_has_seen_most_images_not_most_iterations(tmp_path):
    for name, iteration, batch in (("before", 99, 2), ("after", 60, 4)):
        state = {"iteration": iteration, "hooks": {run_files.RUN_STATE: {"total_batch_size": batch}}}
        torch.save({"model": {}, "iteration": iteration, "trainer": state}, tmp_path / f"{name}.pth")
        os.utime(tmp_path / f"{name}.pth", (0, 0))
    assert RunCheckpoints.__qualname__ == run_files.RUN_STATE
    assert [file.stem for file in run_files.newest_first(tmp_path)] == ["after", "before"]


def test_row_34_nothing_whole_is_an_error_and_nothing_at_all_none(tmp_path):
    assert not make_checkpointer(tmp_path / "absent").has_checkpoint()
    assert not make_checkpointer(tmp_path).has_checkpoint()
    save(tmp_path, 3)
    spoil(tmp_path / "model_0000003.pth", "cut")
    with pytest.raises(CheckpointError, match=r"no checkpoint in it is whole \(.*model_0000003.pth: not a whole file"):
        make_checkpointer(tmp_path).get_checkpoint_file()


# ----------------------------------------------------------------------------------------------------------- full disks


def test_row_33_a_real_limit_while_a_checkpoint_is_written(tmp_path):
    save(tmp_path, 0)
    content = (tmp_path / "model_0000000.pth").read_bytes()

    def hit_the_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(CheckpointError, match=r"cannot be written .*Is the disk full"):
            save(tmp_path, 1)

    assert os.waitpid(forked(hit_the_limit), 0)[1] == 0
    assert (tmp_path / "model_0000000.pth").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000000.pth"]
    assert load(tmp_path) == 0


def test_row_33_a_disk_without_space_for_one_checkpoint_shows_at_the_start(short_cfg, monkeypatch):
    usage = shutil.disk_usage(os.getcwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
    with pytest.raises(ValueError, match=r"train\.output_dir=\S+run: 0\.0 GB are free, .* about 0\.0 GB"):
        train(short_cfg, console="off")
    assert saved(short_cfg) == []


def test_row_33_a_folder_that_cannot_be_made_or_written_shows_before_training(short_cfg, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    short_cfg.train.output_dir = str(tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"train\.output_dir cannot be created: Not a directory.*file/run"):
        train(short_cfg, console="off")
    short_cfg.train.output_dir = str(tmp_path / "run")
    access = os.access  # permissions do not keep root, who may run this, from writing
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not mode & os.W_OK)
    with pytest.raises(PermissionError, match=r"train\.output_dir=\S+run cannot be written: choose another folder"):
        train(short_cfg, console="off")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(k, ...): these saves, counted from 0, find no space."""

    def plan(*saves):
        flush, number = whole_files._flush_to_disk, iter(range(1000))

        def no_space(path):
            if path.name.startswith(".model") and next(number) in saves:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            flush(path)

        monkeypatch.setattr(whole_files, "_flush_to_disk", no_space)

    return plan


@pytest.fixture
def short_cfg(tmp_path):
    """Six steps with a checkpoint after each one, without evaluation."""
    cfg = load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}", "train.checkpointer.period=1"])
    del cfg.dataloader["evaluator"]
    return cfg


def saved(cfg):
    return sorted(path.name for path in Path(cfg.train.output_dir).iterdir() if "model" in path.name)


def test_row_33_training_goes_on_and_says_loudly_that_there_was_no_checkpoint(short_cfg, full_disk, capsys):
    full_disk(1, 2, 4)
    train(short_cfg)
    assert saved(short_cfg) == [f"model_000000{i}.pth" for i in (0, 3, 5)] + ["model_final.pth"]
    out = capsys.readouterr().out
    assert re.findall(r"error: NO CHECKPOINT WRITTEN \((\d) of at most 3 in a row\)", out) == ["1", "2", "1"]
    assert "No space left on device" in out


@pytest.mark.parametrize("failing, left", [((1, 2, 3), "model_0000000.pth"), ((6,), "model_0000005.pth")])
def test_row_33_too_many_in_a_row_or_the_last_one_are_an_error(short_cfg, full_disk, failing, left):
    full_disk(*failing)
    with pytest.raises(CheckpointError, match=r"No space left on device.*Is the disk full"):
        train(short_cfg, console="off")
    assert (Path(short_cfg.train.output_dir) / "last_checkpoint").read_text() == left
    assert not [name for name in saved(short_cfg) if "partial" in name]


def test_a_resumed_run_removes_what_the_one_before_would_have(short_cfg):
    short_cfg.train.checkpointer.max_to_keep, short_cfg.train.max_iter = 2, 3
    train(short_cfg, console="off")
    assert saved(short_cfg) == ["model_0000001.pth", "model_0000002.pth", "model_final.pth"]
    short_cfg.train.max_iter = 5
    (Path(short_cfg.train.output_dir) / ".model_0000003.pth.x.partial").write_text("of a killed process")
    train(short_cfg, resume=True, console="off")
    assert saved(short_cfg) == ["model_0000003.pth", "model_0000004.pth", "model_final.pth"]


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def running(short_cfg, tmp_path):
    """Training without an end in a process group of its own, with two workers, after its first step."""
    short_cfg.train.max_iter, short_cfg.train.checkpointer.period = 100_000, 100_000
    short_cfg.dataloader.train.num_workers = 2

    def work():
        os.setpgid(0, 0)
        sys.stderr = open(tmp_path / "stderr", "w")  # noqa: SIM115
        code = guarded(lambda: train(short_cfg, console="off") and None)
        sys.stderr.flush()
        os._exit(code)

    process = forked(work)
    metrics = Path(short_cfg.train.output_dir) / "metrics.json"
    for _ in range(1000):
        if metrics.exists() and metrics.read_text():
            break
        time.sleep(0.02)
    yield process, short_cfg
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_row_38_a_signal_to_the_whole_group_finishes_the_step_and_saves(running, number, code, tmp_path):
    process, cfg = running
    os.killpg(process, number)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == code
    (name,) = saved(cfg)
    steps = int(re.fullmatch(r"model_(\d{7}).pth", name)[1]) + 1
    err = (tmp_path / "stderr").read_text()
    assert f"dinox: stopped by {signal.Signals(number).name} after {steps} iterations; --resume continues" in err
    assert "Traceback" not in err
    cfg.train.max_iter = steps + 1
    train(cfg, resume=True, console="off")
    assert "model_final.pth" in saved(cfg)


def workers_of(process):
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", ["workers", "training"])
def test_row_38_a_signal_to_each_process_alone_saves_what_was_done(running, tmp_path, first):
    """As slurm sends it. Workers end at once; the step goes on if it has its batch."""
    process, cfg = running
    both = [*workers_of(process), process]
    assert len(both) == 3
    for pid in both if first == "workers" else reversed(both):
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(process, 0)
    if first == "workers" and os.waitstatus_to_exitcode(status) == 2:  # it noticed before its own signal came
        assert "was ended from outside" in (tmp_path / "stderr").read_text()
        return
    assert os.waitstatus_to_exitcode(status) == 143, (tmp_path / "stderr").read_text()
    (name,) = saved(cfg)
    content = torch.load(Path(cfg.train.output_dir) / name, weights_only=True)
    data = content["trainer"]["hooks"]["RunCheckpoints"]["ranks"][0]["data"]["position"]
    assert data["end"] - len(data["waiting"]) == 4 * (content["iteration"] + 1)
    assert content["trainer"]["iteration"] == content["iteration"]


@pytest.mark.timeout(60)
def test_row_38_a_worker_that_is_killed_is_told_with_its_cure(running, tmp_path):
    process, _ = running
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    err = (tmp_path / "stderr").read_text()
    for text in (
        "reads training images was ended from outside (DataLoader worker",
        "lower dataloader.train.num_workers",
    ):
        assert text in err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", [train, evaluate])
def test_row_38_no_shared_memory_left_for_a_worker_is_told_with_its_cure(short_cfg, tmp_path, command):
    """A limit of the size of files takes the place of a full /dev/shm: the system refuses both alike."""
    cfg = load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}"])
    torch.save(TinyDetector(num_classes=6).state_dict(), tmp_path / "weights.pth")
    cfg.train.init_checkpoint = str(tmp_path / "weights.pth")
    for loader, sizes in (cfg.dataloader.train, {"short_edges": [700]}), (cfg.dataloader.test, {"short_edge": 700}):
        loader.num_workers = 1
        loader.mapper.augmentations.update(max_size=700, **sizes)  # 1.5 MB

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        sys.stderr = open(tmp_path / "stderr", "w")  # noqa: SIM115
        code = guarded(lambda: command(cfg, console="off") and None)
        sys.stderr.flush()
        os._exit(code)

    _, status = os.waitpid(forked(work), 0)
    err = (tmp_path / "stderr").read_text()
    assert os.waitstatus_to_exitcode(status) == 2, err
    for text in (".jpg: no room in the memory that processes share, /dev/shm", "num_workers or enlarge /dev/shm"):
        assert text in err


@pytest.mark.timeout(60)
def test_row_38_a_worker_of_an_evaluation_that_is_killed_is_told_with_its_cure(short_cfg, tmp_path, monkeypatch):
    torch.save(TinyDetector(num_classes=6).state_dict(), tmp_path / "weights.pth")
    cfg = load_config(TINY_CONFIG, [f"train.init_checkpoint={tmp_path / 'weights.pth'}"])
    cfg.dataloader.test.num_workers = 1
    monkeypatch.setattr(DetectionMapper, "__call__", killed_in_worker(DetectionMapper.__call__))
    with pytest.raises(ValueError, match=r"reads test images was ended from outside .*lower dataloader\.test\.num_w"):
        evaluate(cfg, console="off")


def killed_in_worker(function):
    def call(self, record):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(self, record)

    return call


def test_row_38_a_second_signal_ends_at_once(short_cfg, monkeypatch):
    def run_step(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("was not ended")

    monkeypatch.setattr(Trainer, "run_step", run_step)
    assert guarded(lambda: train(short_cfg, console="off") and None) == 130
    assert saved(short_cfg) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_row_38_an_evaluation_is_not_waited_for(short_cfg, monkeypatch):
    def evaluation(model):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("was waited for")

    short_cfg.dataloader.evaluator = load_config(TINY_CONFIG).dataloader.evaluator
    short_cfg.train.checkpointer.period, short_cfg.train.eval_period = 100, 2
    monkeypatch.setattr("dinox.engine.training._prepare_evaluation", lambda cfg: evaluation)
    assert guarded(lambda: train(short_cfg, console="off") and None) == 143
    assert saved(short_cfg) == ["model_0000001.pth"]
