"""The whole chain of ``train()``: two ranks, or accumulation, see the images of one process and have its losses."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from dinox.config import load_config
from dinox.engine import MicroBatches, train
from tests.engine.conftest import TINY_DINO_CONFIG
from tests.modeling.test_distributed import TIME_LIMIT, free_port
from tests.small_models import DINO, build_small, make_input

STEPS = 3
OVERRIDES = [
    f"train.max_iter={STEPS}",
    "train.eval_period=0",
    "train.matching_metrics.enabled=false",
    "dataloader.train.total_batch_size=4",
    # The demo's BatchNorm learns from the images of one process.
    "model.backbone.bottom_up.norm=FrozenBN",
]


def make_cfg(folder, *overrides):
    cfg = load_config(TINY_DINO_CONFIG, [f"train.output_dir={folder}", *OVERRIDES, *overrides])
    del cfg.dataloader["evaluator"]
    return cfg


def losses(cfg):
    """Iteration -> losses, averaged over ranks."""
    lines = (Path(cfg.train.output_dir) / "metrics.json").read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if "total_loss" in entry]
    return {e["iteration"]: {key: value for key, value in e.items() if "loss" in key} for e in entries}


def train_and_note_images(cfg):
    """Train; returns (iteration, image, sum of its pixels, its noise seed) of all images that this process saw."""
    seen, split = [], MicroBatches.split

    def noting(self, batch, iteration):
        for part in split(self, batch, iteration):
            seen.extend((iteration, x["image_id"], int(x["image"].sum()), x["noise_seed"]) for x in part.inputs)
            yield part

    MicroBatches.split = noting
    try:
        train(cfg, console="off")
    finally:
        MicroBatches.split = split
    return seen


def train_on_a_rank(rank, port, cfg):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    torch.save(train_and_note_images(cfg), Path(cfg.train.output_dir) / f"seen.{rank}.pth")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(images seen, losses) of one process."""
    cfg = make_cfg(tmp_path_factory.mktemp("alone"))
    return train_and_note_images(cfg), losses(cfg)


def assert_same_losses(actual, expected):
    """1e-5: in float32 sums of another order have relative errors of about 1e-7, which two steps of Adam pass on."""
    assert actual.keys() == expected.keys() == set(range(STEPS))
    for step in expected:
        assert actual[step] == pytest.approx(expected[step], rel=1e-5), step


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.parametrize("parts", [1, 2])
def test_two_ranks_see_the_images_of_one_process_and_have_its_losses(tmp_path, alone, parts):
    cfg = make_cfg(tmp_path, f"train.accumulation_steps={parts}")
    mp.start_processes(train_on_a_rank, (free_port(), cfg), nprocs=2, start_method="fork")
    seen = [torch.load(tmp_path / f"seen.{rank}.pth") for rank in range(2)]
    assert sorted(seen[0] + seen[1]) == sorted(alone[0])
    assert seen[0] == alone[0][0::2] and seen[1] == alone[0][1::2]
    assert_same_losses(losses(cfg), alone[1])


def count_exchanges_of_slots(rank, port, folder, config):
    """parts -> in each step, how often ranks tell each other a maximum."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    maxima, all_reduce, found = [], dist.all_reduce, {}

    def counting(tensor, op=dist.ReduceOp.SUM, **options):
        maxima.extend([1] * (op == dist.ReduceOp.MAX))
        return all_reduce(tensor, op=op, **options)

    dist.all_reduce = counting
    for parts in (1, 2, 4):
        maxima.clear()
        model = build_small(config)
        batch = [make_input(64, 64, (rank + i) % 3, seed=i) for i in range(4)]
        for part in MicroBatches(accumulation_steps=parts, seed=lambda: 1).split(batch, 0):
            targets = model.prepare_targets(part.inputs)
            model.predict(part.inputs, targets)
        found[parts] = len(maxima)
    torch.save(found, Path(folder) / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.timeout(TIME_LIMIT)
def test_ranks_tell_each_other_the_fullest_image_once_a_step(tmp_path):
    mp.start_processes(count_exchanges_of_slots, (free_port(), tmp_path, DINO), nprocs=2, start_method="fork")
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pth") == {1: 1, 2: 1, 4: 1}


def test_accumulation_has_the_losses_of_the_whole_batch(tmp_path, alone):
    cfg = make_cfg(tmp_path, "train.accumulation_steps=3")
    assert train_and_note_images(cfg) == alone[0]
    assert_same_losses(losses(cfg), alone[1])


def test_more_parts_than_a_process_has_images_are_an_error_before_anything_is_written(tmp_path):
    cfg = make_cfg(tmp_path / "run", "train.accumulation_steps=5")
    with pytest.raises(ValueError, match=r"train.accumulation_steps=5: expected at most the 4 images of a process"):
        train(cfg, console="off")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [0, 2.5, True, "two"])
def test_accumulation_steps_are_a_whole_number(tmp_path, value):
    cfg = make_cfg(tmp_path / "run")
    cfg.train.accumulation_steps = value
    with pytest.raises(ValueError, match=r"train.accumulation_steps: expected a whole number of at least 1, got"):
        train(cfg, console="off")
    assert not (tmp_path / "run").exists()


def test_a_config_without_the_key_does_not_accumulate(tmp_path, alone):
    cfg = make_cfg(tmp_path)
    del cfg.train["accumulation_steps"], cfg.train["lr_scaling"]
    train(cfg, console="off")
    assert losses(cfg) == alone[1]


def test_batch_norm_in_parts_is_warned_of(tmp_path, capsys):
    overrides = ["model.backbone.bottom_up.norm=BN", "train.accumulation_steps=2", "train.max_iter=1"]
    train(make_cfg(tmp_path / "parts", *overrides))
    assert "BatchNorm layers (the first one is backbone.bottom_up.stem.conv1.norm)" in capsys.readouterr().out
    train(make_cfg(tmp_path / "whole", overrides[0], overrides[2]))
    assert "BatchNorm layers" not in capsys.readouterr().out
