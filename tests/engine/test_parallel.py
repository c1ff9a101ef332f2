"""Weights that two gloo processes on the CPU share out are trained, saved and resumed as those that each has whole."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import OmegaConf

from dinox.engine import ClippedAdamW, get_optimizer_params
from torch.nn.parallel import DistributedDataParallel

from dinox.engine.parallel import check_parallel, shard
from dinox.utils.sharded_tensors import has_shards, sharded_like, whole, whole_state
from tests.modeling.test_distributed import TIME_LIMIT, free_port
from tests.small_models import build_small, make_input

STEPS = 3
CONFIGS = {
    "resnet": "dino/dino_r50_4scale_12ep",
    "swin": "dino/dino_swin_l_4scale_12ep",
    "vit": "dino/dino_vitdet_b_4scale_12ep",
}


def on_two_ranks(work, *args):
    mp.start_processes(as_rank, (free_port(), work, *args), nprocs=2, start_method="fork")


def as_rank(rank, port, work, *args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    work(rank, *args)
    dist.destroy_process_group()


def trained(rank, parallel, config, dtype, *, amp=False):
    """Losses of three steps, the gradients' norms, and what is left of it; the ranks have an image each."""
    model = build_small(config).to(dtype)
    wrapped = shard(model, device_type="cpu", half=amp) if parallel == "fsdp" else DistributedDataParallel(model)
    optimizer = ClippedAdamW(get_optimizer_params(model, lr=1e-3))
    values = []
    for step in range(STEPS):
        optimizer.zero_grad()
        torch.manual_seed(10 * step + rank)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            losses = wrapped([make_input(64, 64, 3 * (rank != step), seed=10 * step + rank)])
        sum(losses.values()).backward()
        norm = optimizer.clip_gradients()
        assert not hasattr(norm, "full_tensor")
        values.append({name: loss.detach() for name, loss in losses.items()} | {"norm": norm})
        optimizer.step()
    return model, optimizer, values


def compare_trainings(rank, config, dtype, tolerance):
    whole_model, whole_optimizer, expected = trained(rank, "ddp", config, dtype)
    model, optimizer, values = trained(rank, "fsdp", config, dtype)
    assert has_shards(model) and all(type(p).__name__ == "DTensor" for p in model.parameters())
    for one, other in zip(expected, values, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        whole_state(model.state_dict()), dict(whole_model.state_dict()), rtol=tolerance, atol=tolerance
    )


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize("backbone, dtype, tolerance", [("resnet", torch.float64, 1e-10)])
def test_sharded_training_is_replicated_training(backbone, dtype, tolerance):
    """Sums over ranks have two terms, so that only the order of operations within a layer may differ."""
    on_two_ranks(compare_trainings, CONFIGS[backbone], dtype, tolerance)
