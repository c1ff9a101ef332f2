"""Measures of matching in training."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dinox.analysis import read_run
from dinox.config import load_config
from dinox.engine import train
from dinox.engine.matching import MatchingMetricsHook
from dinox.evaluation.matching import GroundTruthImages, match_images
from tests.engine.conftest import TINY_DINO_CONFIG
from tests.modeling.test_distributed import TIME_LIMIT, free_port
from tests.small_models import build_small

EVERY_TIME = {
    "matching/anchor_target_l1",
    "matching/atd_100",
    "matching/atd_100_small",
    "matching/unstable_0",
    "matching/unstable_1",
}
INSTABILITY = "matching/instability"


def written(cfg):
    """iteration -> {metric: value} of the measures of matching in metrics.json"""
    entries = map(json.loads, (Path(cfg.train.output_dir) / "metrics.json").read_text().splitlines())
    found = {e["iteration"]: {k: v for k, v in e.items() if k.startswith("matching/")} for e in entries}
    return {iteration: values for iteration, values in found.items() if values}


def checkpoint(cfg, name="model_final.pth"):
    return torch.load(Path(cfg.train.output_dir) / name, weights_only=True)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    cfg = load_config(TINY_DINO_CONFIG, [f"train.output_dir={tmp_path_factory.mktemp('run')}"])
    train(cfg, console="off")
    return cfg


def test_they_are_written_at_every_evaluation_and_the_first_one_has_no_instability(finished_run):
    values = written(finished_run)
    assert list(values) == [1, 3, 5]
    assert values[1].keys() == EVERY_TIME
    assert values[3].keys() == values[5].keys() == EVERY_TIME | {INSTABILITY}
    assert 0 <= values[3][INSTABILITY] <= 2 * 12  # queries
    assert all(0 <= each[f"matching/unstable_{layer}"] <= 100 for each in values.values() for layer in range(2))


def test_curves_find_them(finished_run):
    run = read_run(finished_run.train.output_dir)
    assert run.metrics[INSTABILITY].iterations.tolist() == [4, 6]
    assert run.along("epochs", run.metrics["matching/atd_100"].iterations).tolist() == [1, 2, 3]


def test_training_goes_on_as_without_them(finished_run, tiny_dino_cfg):
    tiny_dino_cfg.train.matching_metrics.enabled = False
    train(tiny_dino_cfg, console="off")
    assert written(tiny_dino_cfg) == {}
    without, measured = checkpoint(tiny_dino_cfg)["model"], checkpoint(finished_run)["model"]
    assert all(torch.equal(without[name], measured[name]) for name in without)


def test_a_resumed_run_compares_with_what_the_run_of_the_checkpoint_had(tiny_dino_cfg):
    train(tiny_dino_cfg, console="off")
    state = checkpoint(tiny_dino_cfg, "model_0000003.pth")["trainer"]["hooks"]["MatchingMetricsHook"]
    assert len(state["images"]) == 5 and state["index_vectors"].shape == (5, 12)
    folder = Path(tiny_dino_cfg.train.output_dir)
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    (folder / "metrics.json").unlink()
    train(tiny_dino_cfg, resume=True, console="off")
    final = checkpoint(tiny_dino_cfg)["trainer"]["hooks"]["MatchingMetricsHook"]["index_vectors"]
    changed = (final != state["index_vectors"]).sum(1).float().mean()
    assert written(tiny_dino_cfg)[5][INSTABILITY] == pytest.approx(float(changed))


def test_a_run_resumed_with_other_images_starts_over(tiny_dino_cfg, capsys):
    tiny_dino_cfg.train.max_iter = 2
    train(tiny_dino_cfg, console="off")
    tiny_dino_cfg.train.update(max_iter=4)
    tiny_dino_cfg.train.matching_metrics.num_images = 3
    train(tiny_dino_cfg, resume=True)
    assert "measured on other images than before" in capsys.readouterr().out
    assert written(tiny_dino_cfg)[3].keys() == EVERY_TIME


def test_without_a_period_only_the_last_iteration_is_measured(tiny_dino_cfg):
    tiny_dino_cfg.train.matching_metrics.update(period=0, top_k=7, num_images=None)
    tiny_dino_cfg.train.max_iter = 3
    train(tiny_dino_cfg, console="off")
    assert list(written(tiny_dino_cfg)) == [2] and "matching/atd_7" in written(tiny_dino_cfg)[2]


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.matching_metrics.num_images=0", "train.matching_metrics.num_images: expected a whole number of at"),
        ("train.matching_metrics.top_k=0", "train.matching_metrics.top_k: expected a whole number of at least 1"),
        ("model.criterion=null", "train.matching_metrics.enabled=True: expected a detection transformer with a"),
    ],
)
def test_a_mistake_shows_before_anything_is_written(tmp_path, override, message):
    cfg = load_config(TINY_DINO_CONFIG, [f"train.output_dir={tmp_path / 'run'}", override])
    with pytest.raises(ValueError, match=message):
        train(cfg, console="off")
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------- distributed runs


class _Storage(dict):
    def put_scalars(self, smoothing_hint, **scalars):
        self.update(scalars)


class _Trainer:
    iter, max_iter = 1, 2

    def __init__(self):
        self.storage = _Storage()


def measure(hook):
    hook.trainer = _Trainer()
    hook.after_step()
    return hook.trainer.storage, hook.state_dict()


def make_hook(num_images=5):
    images = GroundTruthImages.of_test_set(load_config(TINY_DINO_CONFIG), num_images=num_images)
    return MatchingMetricsHook(model=build_small(), images=images, period=2)


def measure_on_a_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    results = {"five": measure(make_hook()), "one": measure(make_hook(num_images=1))}
    hook = make_hook()
    if rank == 1:
        hook._model.heads = None  # as if this rank alone ran out of memory
    try:
        measure(hook)
    except Exception as error:
        results["error"] = f"{type(error).__name__}: {error}"
    torch.save(results, os.path.join(folder, f"{rank}.pth"))
    dist.destroy_process_group()


@pytest.mark.timeout(TIME_LIMIT)
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over tcp is tested on Linux")
def test_two_ranks_measure_what_one_does_and_fail_together(tmp_path):
    images = GroundTruthImages.of_test_set(load_config(TINY_DINO_CONFIG), num_images=5)
    match_images(build_small(), images.batches())  # writes the dataset, once
    mp.spawn(measure_on_a_rank, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in range(2))
    storage, state = measure(make_hook())
    assert dict(first["five"][0]) == pytest.approx(dict(storage)) and storage
    assert first["one"][0] and not second["five"][0] and not second["one"][0]  # only the first rank writes
    for result in (first, second):
        assert torch.equal(result["five"][1]["index_vectors"], state["index_vectors"])
    assert first["error"].startswith("ValueError: matching cannot be measured on rank 1: ")
    assert second["error"] in first["error"]
