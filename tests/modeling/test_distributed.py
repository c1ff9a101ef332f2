"""Two gloo processes on the CPU."""

import os
import socket
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ..small_models import assert_trains_one_step, build_small, make_input

TIME_LIMIT = 90  # seconds; a hang is the failure this guards against
HANG_LIMIT = 30  # seconds, for processes that are forked
MIXES = [(3, 0), (0, 3), (0, 0), (3, 3)]
"""Objects of the two ranks' images."""

CONFIGS = [
    "dino/dino_r50_4scale_12ep",
    "stable_dino/stable_dino_r50_4scale_12ep",
    "h_detr/h_deformable_detr_r50_12ep",
    "dn_detr/dn_detr_r50_50ep",
    "dn_detr/dn_vanilla_detr_r50_300ep",
    "dn_detr/dn_deformable_detr_two_stage_r50_50ep",
    "co_detr/co_deformable_detr_r50_12ep",
    "co_detr/ablation_six_heads",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def train_where_ranks_have_no_objects(rank: int, port: int, folder: str, config: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(build_small(config))  # without find_unused_parameters
    # DDP notices a missing gradient at the next forward: after every mix comes another one.
    for step, objects in enumerate([*MIXES, MIXES[0]]):
        keys = sorted(assert_trains_one_step(model, [make_input(64, 64, objects[rank], seed=step)]))
        gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
        torch.save({"keys": keys, "gradients": gradients}, os.path.join(folder, f"{step}.{rank}.pth"))
    dist.destroy_process_group()


@pytest.mark.timeout(HANG_LIMIT)
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over tcp is tested on Linux")
@pytest.mark.parametrize("config", CONFIGS)
def test_ranks_without_objects_neither_hang_nor_lose_losses_or_gradients(tmp_path, config):
    mp.start_processes(
        train_where_ranks_have_no_objects, (free_port(), str(tmp_path), config), nprocs=2, start_method="fork"
    )
    keys, names = [], []
    for step in range(len(MIXES) + 1):
        first, second = (torch.load(tmp_path / f"{step}.{rank}.pth") for rank in range(2))
        keys += [first["keys"], second["keys"]]
        names.append([*first["gradients"]])
        assert first["gradients"].keys() == second["gradients"].keys()
        for name, gradient in first["gradients"].items():
            assert torch.equal(gradient, second["gradients"][name]), (MIXES[step % len(MIXES)], name)
    assert all(each == keys[0] for each in keys) and all(each == names[0] for each in names)


def losses_of_half_a_batch(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    model = build_small("dino/dino_r50_4scale_12ep", "model.query_groups.denoising=null")
    losses = model([make_input(64, 64, 5 if rank == 0 else 1, seed=rank)])
    torch.save({key: value.detach() for key, value in losses.items()}, os.path.join(folder, f"{rank}.pth"))
    dist.destroy_process_group()


@pytest.mark.timeout(TIME_LIMIT)
def test_losses_are_normalised_by_the_objects_of_all_ranks(tmp_path):
    """The mean over two ranks is the loss of one process with both images; float32, 1e-5 for the order of sums."""
    mp.start_processes(losses_of_half_a_batch, (free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    halves = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    model = build_small("dino/dino_r50_4scale_12ep", "model.query_groups.denoising=null")
    whole = model([make_input(64, 64, 5, seed=0), make_input(64, 64, 1, seed=1)])
    for key, value in whole.items():
        torch.testing.assert_close(sum(half[key] for half in halves) / 2, value.detach(), rtol=1e-5, atol=1e-5)
