import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate

from dinox.checkpoint import CheckpointError
from dinox.data.errors import DataError
from dinox.engine import evaluate, train
from dinox.engine.setup import resolve_device
from tests.engine.conftest import TINY_CONFIG


def metrics(cfg):
    """iteration -> scalars"""
    lines = (Path(cfg.train.output_dir) / "metrics.json").read_text().splitlines()
    return {entry["iteration"]: entry for entry in map(json.loads, lines) if "total_loss" in entry}


def checkpoint(cfg, name="model_final.pth"):
    return torch.load(Path(cfg.train.output_dir) / name, weights_only=True)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """(config, results) of six iterations."""
    cfg = LazyConfig.apply_overrides(
        LazyConfig.load(TINY_CONFIG), [f"train.output_dir={tmp_path_factory.mktemp('run')}"]
    )
    return cfg, train(cfg, console="off")


def test_a_run_leaves_weights_metrics_config_and_log(finished_run):
    cfg, results = finished_run
    folder = Path(cfg.train.output_dir)
    assert {"model_final.pth", "last_checkpoint", "metrics.json", "config.yaml", "log.txt"} <= {
        p.name for p in folder.iterdir()
    }
    assert sorted(metrics(cfg)) == list(range(6))
    assert 0 <= results["bbox/AP"] <= 100
    assert results["detections/count"] == 8
    assert "TinyDetector" in (folder / "log.txt").read_text()


def test_the_learning_rate_drops_after_two_of_three_epochs(finished_run):
    cfg, _ = finished_run
    assert [entry["lr"] for _, entry in sorted(metrics(cfg).items())] == pytest.approx([1e-4] * 4 + [1e-5] * 2)


def test_checkpoints_are_plain_and_load_through_the_stock_checkpointer(finished_run):
    cfg, _ = finished_run
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(f"{cfg.train.output_dir}/model_final.pth")
    for name, tensor in checkpoint(cfg)["model"].items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_null_switches_off_what_may_be_switched_off(tiny_cfg):
    for key in ("non_finite", "ddp", "amp", "ema", "compile", "lr_scaling", "parallel", "timeout"):
        tiny_cfg.train[key] = None
    tiny_cfg.train.max_iter = 1
    assert "bbox/AP" in train(tiny_cfg, console="off")


@pytest.mark.parametrize(
    ("key", "value"),
    [("non_finite", "skip"), ("non_finite", 3), ("amp", "fp16"), ("deterministic", "yes"), ("allow_partial", "no")],
)
def test_settings_of_another_type_are_told_before_anything_is_written(tiny_cfg, key, value):
    """As programs may set them; overrides are refused earlier."""
    tiny_cfg.train[key] = value
    with pytest.raises(ValueError, match=rf"train\.{key}: expected .*, got {value!r}"):
        train(tiny_cfg, console="off")
    assert not Path(tiny_cfg.train.output_dir).exists()


def test_the_config_is_not_changed(finished_run):
    cfg, _ = finished_run
    assert "model" not in cfg.optimizer.params


def test_evaluation_of_the_checkpoint_repeats_the_last_one(finished_run):
    cfg, results = finished_run
    again = LazyConfig.apply_overrides(
        copy.deepcopy(cfg), [f"train.init_checkpoint={cfg.train.output_dir}/model_final.pth"]
    )
    assert evaluate(again, console="off") == pytest.approx(results, nan_ok=True)
    assert evaluate(cfg, resume=True, console="off") == pytest.approx(results, nan_ok=True)


def test_evaluation_says_when_the_config_is_not_the_checkpoints(finished_run, capsys):
    cfg, _ = finished_run
    again = copy.deepcopy(cfg)
    again.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    evaluate(again)
    assert "is not that of" not in "".join(capsys.readouterr())
    again.model.min_score = 0.25
    evaluate(again)
    text = "".join(capsys.readouterr())
    assert "The config is not that of" in text and "model_final.pth" in text
    assert "model.min_score=0.25 (in the checkpoint: 0.0)" in text


def test_a_model_that_detects_nothing_scores_zero(finished_run, tiny_cfg):
    cfg, _ = finished_run
    silent = LazyConfig.apply_overrides(tiny_cfg, ["++model.min_score=2.0"])
    silent.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    results = evaluate(silent, console="off")
    assert results["detections/count"] == 0
    assert results["bbox/AP"] == results["bbox/AP50"] == 0


def test_resuming_restores_iteration_optimizer_and_schedule(tiny_cfg):
    tiny_cfg.train.checkpointer.period = 3
    train(tiny_cfg, console="off")
    # As if it had been stopped between the third and the sixth iteration.
    folder = Path(tiny_cfg.train.output_dir)
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    (folder / "metrics.json").unlink()
    saved = checkpoint(tiny_cfg, "model_0000002.pth")["trainer"]
    assert saved["iteration"] == 2
    assert {int(state["step"]) for state in saved["optimizer"]["state"].values()} == {3}

    train(tiny_cfg, resume=True, console="off")
    final = checkpoint(tiny_cfg)["trainer"]
    assert {int(state["step"]) for state in final["optimizer"]["state"].values()} == {6}
    assert final["hooks"]["LRScheduler"]["last_epoch"] == 6
    rates = {iteration: entry["lr"] for iteration, entry in metrics(tiny_cfg).items()}
    assert rates == pytest.approx({3: 1e-4, 4: 1e-5, 5: 1e-5})


def test_a_finished_run_is_only_evaluated_again(finished_run):
    cfg, results = finished_run
    before = checkpoint(cfg)["model"]
    assert train(cfg, resume=True, console="off") == pytest.approx(results, nan_ok=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint(cfg)["model"].items())


def test_a_folder_with_checkpoints_is_not_trained_into_by_mistake(finished_run):
    cfg, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.train.output_dir).iterdir()}
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier run: resume it \(--resume\), or give"):
        train(cfg, console="off")
    assert {path: path.stat().st_mtime_ns for path in Path(cfg.train.output_dir).iterdir()} == before


def test_resuming_with_another_optimizer_is_an_error(finished_run):
    cfg, _ = finished_run
    other = copy.deepcopy(cfg)
    other.optimizer.lr = 5e-5
    with pytest.raises(ValueError, match=r"lr is 5e-05 in the config and 0\.0001 in the checkpoint.*train\.init_check"):
        train(other, resume=True, console="off")
    other = copy.deepcopy(cfg)
    other.optimizer.params.norm_weight_decay = None
    with pytest.raises(ValueError, match=r"parameter groups of \[.*the checkpoint's of \["):
        train(other, resume=True, console="off")


def test_resuming_finds_its_hooks(finished_run):
    cfg, _ = finished_run
    train(cfg, resume=True, console="off")
    assert "Cannot find the hook" not in (Path(cfg.train.output_dir) / "log.txt").read_text()


def test_resuming_another_model_is_an_error(finished_run):
    cfg, _ = finished_run
    wider = LazyConfig.apply_overrides(LazyConfig.load(TINY_CONFIG), [f"train.output_dir={cfg.train.output_dir}"])
    LazyConfig.apply_overrides(wider, ["++model.embed_dim=16"])
    with pytest.raises(CheckpointError, match=r"model_final.pth is not of this model.*to resume takes all of them"):
        train(wider, resume=True, console="off")


def test_resuming_beyond_the_end_is_an_error(finished_run):
    cfg, _ = finished_run
    shorter = LazyConfig.apply_overrides(LazyConfig.load(TINY_CONFIG), [f"train.output_dir={cfg.train.output_dir}"])
    shorter.train.max_iter = 4
    with pytest.raises(ValueError, match=r"at iteration 6, beyond train.max_iter=4"):
        train(shorter, resume=True, console="off")


@pytest.mark.parametrize(
    "override, error, message",
    [
        ("model.num_classes=5", DataError, r"model\.num_classes is 5.*6 classes"),
        ("train.init_checkpoint=nowhere.pth", CheckpointError, "nowhere.pth: no such file"),
        ("train.device=gpu", ValueError, "expected 'cpu' or 'cuda', got 'gpu'"),
        ("train.amp={enabled:true,dtype:fp8}", ValueError, "fp8"),
        ("schedule.drop_epochs=[4]", ValueError, "drop_epochs"),
        ("train.max_iter=0", ValueError, "train.max_iter: expected a whole number of at least 1, got 0"),
        ("train.log_period=0", ValueError, "train.log_period: expected a whole number of at least 1, got 0"),
        ("train.checkpointer.period=0", ValueError, "train.checkpointer.period: expected a whole number"),
        (
            "dataloader.test.dataset.names=[dinox_tiny_val,dinox_tiny_train]",
            ValueError,
            r"one dataset, not a list. Give one name, dataloader\.test\.dataset\.names=dinox_tiny_val",
        ),
    ],
)
def test_nothing_is_written_before_the_checks_have_passed(tiny_cfg, override, error, message):
    with pytest.raises(error, match=message):
        train(LazyConfig.apply_overrides(tiny_cfg, [override]), console="off")
    assert not Path(tiny_cfg.train.output_dir).exists()


def test_an_output_folder_that_cannot_be_made_is_an_error(tiny_cfg, tmp_path):
    (tmp_path / "file").write_text("")
    tiny_cfg.train.output_dir = str(tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"train\.output_dir cannot be created"):
        train(tiny_cfg, console="off")


def test_evaluation_needs_weights(tiny_cfg):
    with pytest.raises(ValueError, match=r"train\.init_checkpoint=FILE"):
        evaluate(tiny_cfg, console="off")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        evaluate(tiny_cfg, resume=True, console="off")


def test_a_config_without_a_schedule_is_named(tiny_cfg):
    del tiny_cfg["lr_multiplier"]
    with pytest.raises(ValueError, match="no lr_multiplier"):
        train(tiny_cfg, console="off")


def test_training_without_an_evaluator_gives_no_results(tiny_cfg):
    del tiny_cfg.dataloader["evaluator"]
    tiny_cfg.train.max_iter = 1
    assert train(tiny_cfg, console="off") == {}


def test_bf16_by_config(tiny_cfg, capsys):
    tiny_cfg.train.amp.enabled = True
    tiny_cfg.train.max_iter = 1
    train(tiny_cfg, console="full")
    out = capsys.readouterr().out
    assert "bf16 on 1 x cpu" in out
    assert "iteration 1/1  loss" in out


def test_logging_is_left_as_it_was(tiny_cfg, capsys):
    loggers = [logging.getLogger(name) for name in ("dinox", "detectron2", "fvcore")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    tiny_cfg.model.num_classes = 5
    with pytest.raises(DataError):
        train(tiny_cfg)
    assert [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers] == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_the_cpu_takes_the_place_of_a_gpu_only_where_none_was_asked_for(caplog):
    assert resolve_device("cuda").type == "cpu"
    assert "running on the CPU" in caplog.text
    with pytest.raises(ValueError, match=r"train\.device=cuda.*no CUDA device"):
        resolve_device("cuda", requested="cuda")
