"""Two forked processes become a group with the groups that detectron2 asks for."""

import contextlib
import json
import os
import signal
import socket
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn

from dinox.cli.running import RunOptions, _device_type, start
from dinox.config import load_config
from dinox.engine import train
from dinox.engine.launching import check_launch, launch
from dinox.engine.peers import is_lost_connection
from dinox.engine.places import Place
from dinox.engine.process_group import joined, timeout_of
from dinox.engine.statistics import AveragedStatistics
from tests.engine.conftest import TINY_CONFIG
from tests.engine.tasks import task_of_srun
from tests.modeling.test_distributed import free_port


def place(rank, port, **changes):
    own = {"rank": rank, "world_size": 2, "local_rank": rank, "local_size": 2, "machine": 0}
    return Place(**(own | {"address": "localhost", "port": port, "job": "", "source": "torchrun"} | changes))


def look_around(rank, port, machines):
    with joined(place(rank, port, machine=machines[rank]), device_type="cpu", timeout=20) as peers:
        assert dist.get_backend() == "gloo" and peers.world_size == 2
        together = machines[0] == machines[1]
        assert (comm.get_local_rank(), comm.get_local_size()) == ((rank, 2) if together else (0, 1))
        assert comm.all_gather(rank) == [0, 1] and not peers.failed
    assert not dist.is_initialized() and comm._LOCAL_PROCESS_GROUP is None
    assert comm.get_world_size() == 1


@pytest.mark.timeout(30)
@pytest.mark.parametrize("machines", [(0, 0), (0, 1)])
def test_local_ranks_are_those_of_a_machine(machines):
    mp.start_processes(look_around, (free_port(), machines), nprocs=2, start_method="fork")


def look_for_warnings(rank, port):
    torch.storage._reset_warn_typed_storage_removal()  # which comes once in a process
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with joined(place(rank, port), device_type="cpu", timeout=20):
            comm.all_gather(rank)
        torch.storage._reset_warn_typed_storage_removal()
        torch.ByteStorage.from_buffer(b"1")
    (own,) = (each for each in told if "TypedStorage" in str(each.message))
    assert own.filename == __file__  # and not what detectron2 does


@pytest.mark.timeout(30)
def test_detectron2s_own_use_of_typed_storage_is_no_warning():
    mp.start_processes(look_for_warnings, (free_port(),), nprocs=2, start_method="fork")


def wait_in_vain(rank, port):
    expected = f"rank 0: the 2 processes have not found each other at localhost:{port}"
    with pytest.raises(ConnectionError, match=expected), joined(place(0, port), device_type="cpu", timeout=1):
        raise AssertionError("nobody else was there")


@pytest.mark.timeout(30)
def test_processes_that_never_come_are_missed():
    mp.start_processes(wait_in_vain, (free_port(),), nprocs=1, start_method="fork")


def find_port_taken(rank, port):
    expected = f"port {port} is taken: set MASTER_PORT"
    with pytest.raises(ConnectionError, match=expected), joined(place(0, port), device_type="cpu", timeout=1):
        raise AssertionError("the port was free")


@pytest.mark.timeout(30)
def test_row_40_a_port_that_is_taken_is_named():
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(find_port_taken, (store.port,), nprocs=1, start_method="fork")


def tell_port(folder):
    (folder / os.environ["RANK"]).write_text(os.environ["MASTER_PORT"])
    return 0


@pytest.mark.timeout(30)
def test_row_40_a_free_port_is_chosen_while_torchs_own_are_taken(tmp_path):
    with socket.socket() as one, socket.socket() as other:
        for taken, port in ((one, 29400), (other, 29500)):  # of c10d and of torchrun
            with contextlib.suppress(OSError):  # somebody else has it
                taken.bind(("", port))
                taken.listen()
        assert launch(tell_port, tmp_path, num_processes=2, start_method="fork", dist_url="auto") == 0
    ports = [(tmp_path / rank).read_text() for rank in ("0", "1")]
    assert ports[0] == ports[1] and ports[0] not in ("29400", "29500")


@pytest.mark.timeout(30)
def test_a_process_that_starts_others_keeps_its_signal_handlers(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    assert launch(tell_port, tmp_path, num_processes=1, start_method="fork") == 0
    assert [signal.getsignal(number) for number in numbers] == before


def evaluate_as_task(rank, port, options):
    os.environ |= task_of_srun(rank, port)
    assert start(options) == 0


@pytest.mark.timeout(60)
def test_tasks_of_srun_evaluate_together(tmp_path):
    train(load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}", "train.max_iter=1"]), console="off")
    options = RunOptions(
        config_file=TINY_CONFIG,
        overrides=(f"train.output_dir={tmp_path / 'run'}",),
        eval_only=True,
        resume=True,
        json_file=str(tmp_path / "found.json"),
    )
    assert start(options) == 0
    alone = json.loads((tmp_path / "found.json").read_text())["results"]
    (tmp_path / "found.json").unlink()
    mp.start_processes(evaluate_as_task, (free_port(), options), nprocs=2, start_method="fork")
    assert json.loads((tmp_path / "found.json").read_text())["results"] == pytest.approx(alone, nan_ok=True)


def average(rank, port):
    with joined(place(rank, port), device_type="cpu", timeout=20):
        norm = nn.BatchNorm2d(2)
        norm.running_mean[:] = torch.tensor([1.0, 5.0]) * (1 + rank)
        norm.num_batches_tracked += 3
        hook = AveragedStatistics(model=nn.Sequential(norm, nn.SyncBatchNorm(2), nn.BatchNorm1d(1, affine=False)))
        hook.after_step()
        assert norm.running_mean.tolist() == [1.5, 7.5] and norm.running_var.tolist() == [1, 1]
        AveragedStatistics(model=nn.Linear(1, 1)).after_step()


@pytest.mark.timeout(30)
def test_statistics_of_batch_norms_are_averaged():
    mp.start_processes(average, (free_port(),), nprocs=2, start_method="fork")


@pytest.mark.parametrize("value, seconds", [(None, 600.0), (30, 30.0), (0.5, 0.5)])
def test_timeout(value, seconds):
    assert timeout_of(OmegaConf.create({"train": {} if value is None else {"timeout": value}})) == seconds


@pytest.mark.parametrize("value", [0, -1, "10 min", True, float("inf"), float("nan")])
def test_a_timeout_that_is_no_time_is_named(value):
    with pytest.raises(
        ValueError, match=r"train\.timeout: expected seconds, a number above 0 and at most 31536000 .a year., got"
    ):
        timeout_of(OmegaConf.create({"train": {"timeout": value}}))


@pytest.mark.parametrize(
    "num_gpus, device, has_gpus, expected",
    [(1, "cuda", True, "cuda"), (1, "cuda", False, "cpu"), (0, "cuda", True, "cpu"), (1, "cpu", True, "cpu")],
)
def test_the_cpu_is_asked_for_or_all_there_is(monkeypatch, num_gpus, device, has_gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpus)
    cfg = OmegaConf.create({"train": {"device": device}})
    assert _device_type(RunOptions(config_file="x", num_gpus=num_gpus), cfg) == expected


def test_more_gpus_than_there_are_tell_of_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"torch finds 0 CUDA .* on the CPU, torchrun .* --nproc_per_node 2"):
        check_launch(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(ValueError, match=r"--dist-url: expected tcp://HOST:PORT or auto, got 'file:///x'"):
        check_launch(num_gpus=1, num_machines=2, machine_rank=0, dist_url="file:///x")


@pytest.mark.parametrize(
    "error, is_lost",
    [
        (RuntimeError("[/pytorch/third_party/gloo/x.cc:5] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("Timed out waiting 3000ms for recv operation to complete"), True),
        (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
        (ConnectionError("Connection refused"), False),  # of a download, say
    ],
)
def test_what_is_a_consequence_of_another_ranks_end(error, is_lost):
    assert is_lost_connection(error) == is_lost


def test_the_environment_is_not_that_of_a_rank():
    """Else all other tests would try to join it."""
    assert "RANK" not in os.environ
