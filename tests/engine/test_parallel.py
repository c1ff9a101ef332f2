"""Weights that two gloo processes on the CPU share out are trained, saved and resumed as those that each has whole."""

import contextlib
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinox.config import load_config
from dinox.engine import ClippedAdamW, TrainingStopped, evaluate, get_optimizer_params, train
from dinox.engine.micro_batches import MicroBatches, gradients_stay_apart
from dinox.engine.parallel import check_parallel, shard
from dinox.utils.sharded_tensors import has_shards, sharded_like, whole, whole_state
from tests.engine.conftest import TINY_DINO_CONFIG
from tests.engine.test_resuming import assert_same, final, stop_second_rank
from tests.modeling.test_distributed import TIME_LIMIT, free_port
from tests.small_models import build_small, make_input

STEPS = 3
CONFIGS = {
    "resnet": "dino/dino_r50_4scale_12ep",
    "swin": "dino/dino_swin_large_4scale_12ep",
    "eva02": "dino/dino_eva02_large_4scale_12ep",
    "convnext": "dino/dino_convnext_large_4scale_12ep",
}


def on_two_ranks(work, *args):
    mp.start_processes(as_rank, (free_port(), work, *args), nprocs=2, start_method="fork")


def as_rank(rank, port, work, *args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    comm._LOCAL_PROCESS_GROUP = dist.group.WORLD
    work(rank, *args)
    dist.destroy_process_group()


def trained(rank, parallel, config, dtype, *, amp=False):
    """Losses of three steps, the gradients' norms, and the model; the ranks have an image each."""
    model = build_small(config).to(dtype)
    wrapped = shard(model, device_type="cpu", half=amp) if parallel == "fsdp" else DistributedDataParallel(model)
    # Adam divides gradients by their size: with its usual eps, round-off where they are zero would become a step.
    optimizer = ClippedAdamW(get_optimizer_params(model, lr=1e-3), eps=1e-3)
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
    return model, values


def compare_trainings(rank, config, dtype, tolerance):
    whole_model, expected = trained(rank, "ddp", config, dtype)
    model, values = trained(rank, "fsdp", config, dtype)
    assert has_shards(model) and all(type(p).__name__ == "DTensor" for p in model.parameters())
    for one, other in zip(expected, values, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        whole_state(model.state_dict()), dict(whole_model.state_dict()), rtol=tolerance, atol=tolerance
    )


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize("backbone", [*CONFIGS])
def test_sharded_training_is_replicated_training(backbone):
    """float64, 1e-10: gradients are divided by the number of ranks before or after they are summed."""
    on_two_ranks(compare_trainings, CONFIGS[backbone], torch.float64, 1e-10)


@pytest.mark.timeout(TIME_LIMIT)
def test_sharded_training_is_replicated_training_in_float32():
    """1e-6, with queries that are not selected: where scores are close, another one may be selected after a step."""
    on_two_ranks(compare_trainings, "dn_detr/dn_vanilla_detr_r50_300ep", torch.float32, 1e-6)


def compare_gradients_in_parts(rank):
    """Of two images in two parts, whole and sharded."""
    gradients = []
    for parallel in ("ddp", "fsdp"):
        model = build_small(CONFIGS["resnet"], "model.query_groups.denoising=null").double()
        wrapped = shard(model, device_type="cpu") if parallel == "fsdp" else DistributedDataParallel(model)
        batch = [make_input(64, 64, 1 + number, seed=2 * number + rank) for number in range(2)]
        for part in MicroBatches(accumulation_steps=2).split(batch, iteration=0):
            with contextlib.nullcontext() if part.is_last else gradients_stay_apart(wrapped):
                sum(wrapped(part.inputs).values()).backward()
        gradients.append({name: whole(p.grad) for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.timeout(TIME_LIMIT)
def test_sharded_gradients_are_accumulated():
    on_two_ranks(compare_gradients_in_parts)


def train_in_half_precision(rank):
    model, values = trained(rank, "fsdp", CONFIGS["swin"], torch.float32, amp=True)
    _, expected = trained(rank, "ddp", CONFIGS["swin"], torch.float32, amp=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {type(p).__name__ for p in model.parameters()} == {"DTensor"}
    for name, value in values[0].items():
        # bf16 has 8 bits: 2 ** -8 for each rounding, of which the biases of attention have one more.
        torch.testing.assert_close(value, expected[0][name], rtol=0.02, atol=0.02)


@pytest.mark.timeout(TIME_LIMIT)
def test_in_bf16_only_what_is_gathered_of_the_backbone_is_half():
    on_two_ranks(train_in_half_precision)


def train_on_rank(rank, cfg, resume, stopped):
    stop_second_rank(rank, stopped)
    with contextlib.suppress(TrainingStopped):
        train(cfg, resume=resume, console="off")


def tiny(folder, parallel, max_iter=4):
    cfg = load_config(TINY_DINO_CONFIG, [f"train.output_dir={folder}", f"train.parallel={parallel}"])
    cfg.train.max_iter, cfg.train.checkpointer.period, cfg.train.eval_period = max_iter, 100, 2
    cfg.dataloader.evaluator.output_dir = None
    cfg.optimizer.eps = 1e-3  # as above
    cfg.train.ema.enabled = True
    return cfg


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cfg = tiny(tmp_path_factory.mktemp("whole"), "fsdp")
    on_two_ranks(train_on_rank, cfg, False, None)
    return cfg


@pytest.mark.timeout(TIME_LIMIT)
def test_row_35_sharded_training_is_resumed_exactly(tmp_path, uninterrupted):
    """It is stopped behind an evaluation, which has a whole model."""
    cfg = tiny(tmp_path, "fsdp")
    on_two_ranks(train_on_rank, cfg, False, 2)
    assert not (tmp_path / "model_final.pth").exists()
    on_two_ranks(train_on_rank, cfg, True, None)
    assert_same(final(cfg), final(uninterrupted))


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize("first, then", [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_checkpoints_are_whole_and_go_on_either_way(tmp_path, uninterrupted, first, then):
    """float32: steps are a thousandth of 1e-6 where gradients agree to as much."""
    cfg = tiny(tmp_path, first)
    on_two_ranks(train_on_rank, cfg, False, 1)
    cfg.train.parallel = then
    on_two_ranks(train_on_rank, cfg, True, None)
    found, expected = final(cfg), final(uninterrupted)
    assert found["iteration"] == expected["iteration"]
    for weights in ("model", "ema"):
        torch.testing.assert_close(found[weights], expected[weights], rtol=0, atol=1e-6)


def test_a_sharded_run_is_detected_with_and_continued_alone(tmp_path, uninterrupted):
    file = Path(uninterrupted.train.output_dir) / "model_final.pth"
    cfg = tiny(tmp_path, "ddp")
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(str(file))
    saved = torch.load(file, weights_only=True)
    assert_same(dict(model.state_dict()), saved["model"])
    best = torch.load(file.with_name("model_best.pth"), weights_only=True)
    assert best["model"].keys() == saved["model"].keys()
    cfg.train.init_checkpoint = str(file)
    assert evaluate(cfg, console="off")
    # One process resumes it, of which train.parallel asks nothing.
    shutil.copytree(uninterrupted.train.output_dir, tmp_path / "alone")
    cfg = tiny(tmp_path / "alone", "fsdp", max_iter=5)
    train(cfg, resume=True, console="off")
    assert final(cfg)["iteration"] == 4


def test_whole_tensors_of_an_ordinary_model_are_its_own():
    layer = nn.Linear(2, 2)
    assert whole(layer.weight) is layer.weight and sharded_like(layer.bias, layer.bias) is layer.bias
    state = {"a": [layer.weight, (1, "x")], "b": {"c": None}}
    assert whole_state(state) == state


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"parallel": "fdsp"}, "train.parallel: expected one of ddp, fsdp, got 'fdsp'"),
        ({"timeout": 0}, "train.timeout: expected seconds, a number above 0 and at most 31536000 .a year., got 0"),
        ({"parallel": True}, "train.parallel: expected one of ddp, fsdp, got True"),
        ({"parallel": "fsdp", "amp": {"enabled": True, "dtype": "fp16"}}, "got train.amp.dtype=fp16: give bf16"),
    ],
)
def test_what_cannot_be_shared_out_is_said(settings, expected):
    with pytest.raises(ValueError, match=expected):
        check_parallel(OmegaConf.create({"train": settings}))
    for fine in ({}, {"parallel": "ddp"}, {"parallel": "fsdp", "amp": {"enabled": True}}):
        check_parallel(OmegaConf.create({"train": fine}))
