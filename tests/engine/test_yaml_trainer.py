"""DinoxTrainer, and detectron2's DefaultTrainer and DefaultPredictor, from a CfgNode."""

import copy
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from torch import nn

from dinox.checkpoint import CheckpointError, read_description
from dinox.config import ConfigError, load_config
from dinox.data import DataError
from dinox.engine import ClippedAdamW, DinoxTrainer
from tests.engine.yaml_run import TEST, TRAIN, YAML, datasets, loggers, make_cfg  # noqa: F401


def train(trainer_class, cfg, *, resume=False):
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer, trainer.train()


def checkpoint(cfg, name="model_final.pth"):
    return torch.load(Path(cfg.OUTPUT_DIR) / name, weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(cfg, trainer, results) of four steps."""
    cfg = make_cfg(tmp_path_factory.mktemp("yaml") / "run")
    return cfg, *train(DinoxTrainer, cfg)


def test_training_leaves_weights_metrics_and_results(finished):
    cfg, _, results = finished
    assert {"AP", "AP50"} <= results["bbox"].keys() and 0 <= results["bbox"]["AP"] <= 100
    assert {"model_0000001.pth", "model_final.pth", "metrics.json", "inference"} <= set(os.listdir(cfg.OUTPUT_DIR))
    lines = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line][-1] == pytest.approx(5e-5)
    assert [line["epoch"] for line in lines if "epoch" in line][-1] == 1.0  # 4 steps of 2 of 8 images


def test_the_optimizer_is_that_of_the_papers(tmp_path):
    cfg = make_cfg(tmp_path, "SOLVER.BASE_LR", 0.01, "SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.WEIGHT_DECAY", 0.5)
    model = build_model(cfg)
    optimizer = DinoxTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, ClippedAdamW) and optimizer.max_grad_norm == 0.1
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    backbone = next(model.backbone.bottom_up.parameters())
    assert found[id(backbone)] == (pytest.approx(0.001), 0.5)
    assert found[id(model.decoder.norm.weight)] == (0.01, 0.0)


def test_gradients_are_not_clipped_on_request(tmp_path):
    cfg = make_cfg(tmp_path, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    assert DinoxTrainer.build_optimizer(cfg, build_model(cfg)).max_grad_norm is None


def test_the_checkpoint_knows_its_config_and_classes(finished):
    cfg, trainer, _ = finished
    description = read_description(f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert description.class_names == tuple(MetadataCatalog.get(TRAIN).thing_classes)
    assert description.config.model.num_queries == trainer.model.num_queries == 10


def test_resuming_goes_on_as_if_nothing_had_happened(finished, tmp_path):
    cfg, _, _ = finished
    again = make_cfg(tmp_path / "again")
    os.makedirs(again.OUTPUT_DIR)
    os.link(f"{cfg.OUTPUT_DIR}/model_0000001.pth", f"{again.OUTPUT_DIR}/model_0000001.pth")
    (tmp_path / "again" / "last_checkpoint").write_text("model_0000001.pth")
    trainer = DinoxTrainer(again)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    assert {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()} == {2}
    trainer.train()
    saved = checkpoint(again)["trainer"]
    assert saved["iteration"] == checkpoint(cfg)["trainer"]["iteration"]
    assert {int(state["step"]) for state in saved["_trainer"]["optimizer"]["state"].values()} == {4}
    assert saved["hooks"]["LRScheduler"]["last_epoch"] == 4
    # Bit for bit: row 35 of the fault catalogue.
    for name, tensor in checkpoint(cfg)["model"].items():
        assert torch.equal(tensor, checkpoint(again)["model"][name]), name
    before, after = (checkpoint(each)["trainer"]["hooks"]["RunCheckpoints"]["ranks"] for each in (cfg, again))
    assert torch.equal(before[0]["random"]["torch"], after[0]["random"]["torch"])
    assert before[0]["data"] == after[0]["data"]


def test_averages_the_best_checkpoint_and_an_early_end_are_those_of_the_overrides(tmp_path, capfd):
    """After two steps nothing is detected yet, and no better after four: the last two of six are not made."""
    stopping = "train.early_stopping={enabled: true, patience: 1, metric: bbox/AP75, min_delta: 100.0}"
    cfg = make_cfg(
        tmp_path / "run",
        *("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 2),
        overrides=["train.ema={enabled: true, decay: 0.9, warmup: 3}", stopping],
    )
    _, results = train(DinoxTrainer, cfg)
    final = checkpoint(cfg)
    assert final["iteration"] == 3 and {"AP", "AP75"} <= results["bbox"].keys()
    assert final["ema"].keys() == final["model"].keys()
    assert final["trainer"]["hooks"]["WeightAverage"] == {"steps": 4}
    assert checkpoint(cfg, "model_best.pth")["best"]["metric"] == "bbox/AP"
    again = train(DinoxTrainer, cfg, resume=True)[1]
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True, abs=0)  # without small objects APs is NaN
    cfg.MODEL.DINOX.OVERRIDES = [*cfg.MODEL.DINOX.OVERRIDES, "train.ema.decai=0.5"]
    with pytest.raises(ConfigError, match=r"Did you mean 'train\.ema\.decay'"):
        DinoxTrainer(cfg)


def test_sigterm_finishes_the_step_saves_and_exits(tmp_path):
    trainer = DinoxTrainer(make_cfg(tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", 100))
    run_step = trainer.run_step

    def interrupted():
        if trainer.iter == 1:
            signal.raise_signal(signal.SIGTERM)
        run_step()

    trainer.run_step = interrupted
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 143
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_resumed_run_with_other_batches_goes_on_after_as_many_images(finished, tmp_path):
    cfg, _, _ = finished
    again = make_cfg(tmp_path / "again", "SOLVER.IMS_PER_BATCH", 4)
    os.makedirs(again.OUTPUT_DIR)
    os.link(f"{cfg.OUTPUT_DIR}/model_0000001.pth", f"{again.OUTPUT_DIR}/model_0000001.pth")
    trainer = DinoxTrainer(again)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == trainer.scheduler.last_epoch == 1


def test_parts_of_batches_and_scaled_learning_rates_are_overrides(finished, tmp_path):
    """A resumed run has the rates of its own batch, 4 instead of 2, and so has its schedule."""
    cfg, before, _ = finished
    overrides = ["train.accumulation_steps=2", "train.lr_scaling={rule:sqrt,reference_batch_size:1}"]
    other = make_cfg(cfg.OUTPUT_DIR, "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "8", overrides=overrides)
    trainer = DinoxTrainer(other)
    rates = [group["initial_lr"] for group in before.optimizer.param_groups]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [2 * rate for rate in rates]
    trainer.resume_or_load(resume=True)
    assert trainer.scheduler.base_lrs == [2 * rate for rate in rates]
    assert trainer.optimizer.param_groups[0]["lr"] == 2 * rates[0]  # four steps count as two of eight: no drop yet
    parts = list(trainer._trainer.micro_batches.split([{"image_id": 1}] * 4, 0))
    assert [len(part.inputs) for part in parts] == [2, 2] and "noise_seed" in parts[0].inputs[0]


def test_a_folder_with_checkpoints_is_not_trained_into_by_mistake(finished):
    cfg, _, _ = finished
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier run: resume it"):
        DinoxTrainer(cfg).resume_or_load(resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_the_best_checkpoint_alone_is_neither(finished, tmp_path, resume):
    _, trainer, _ = finished
    (tmp_path / "model_best.pth").write_bytes(b"dear to somebody")
    trainer = copy.copy(trainer)
    trainer.cfg, trainer.checkpointer = make_cfg(tmp_path), DetectionCheckpointer(nn.Module(), str(tmp_path))
    with pytest.raises(ValueError, match=r"OUTPUT_DIR=.* holds model_best.pth only, .* start from it with MODEL.WEIGH"):
        trainer.resume_or_load(resume=resume)


def test_a_misspelt_setting_of_the_loop_is_an_error_in_yaml_too(tmp_path):
    file = tmp_path / "own.yaml"
    LazyConfig.save(load_config("dino/dino_demo"), str(file))
    file.write_text(file.read_text().replace("  log_period:", "  log_perido:"))
    cfg = make_cfg(tmp_path / "run")
    cfg.MODEL.DINOX.CONFIG = str(file)
    with pytest.raises(ValueError, match=r"train.log_perido: there is no such key. Did you mean 'log_period'"):
        DinoxTrainer(cfg)
    assert not (tmp_path / "run").exists()


HOLDS_LOCK = """
import sys
from dinox.engine.setup import locked_output_folder
with locked_output_folder(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process trains into this folder."""
    folder = tmp_path / "busy"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_LOCK, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield folder, process
        process.stdin.close()


def test_two_runs_do_not_share_a_folder(other_run):
    folder, process = other_run
    message = rf"OUTPUT_DIR={folder} is in use: process {process.pid} .*or give another OUTPUT_DIR"
    with pytest.raises(ValueError, match=message):
        DinoxTrainer(make_cfg(folder))
    assert os.listdir(folder) == [".lock"]


def test_the_folder_is_locked_while_it_is_trained_into(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    trainer = DinoxTrainer(make_cfg(folder))
    found, run_step = [], trainer.run_step
    monkeypatch.setattr(trainer, "run_step", lambda: run_step() or found.append(bool(found) or is_locked(folder)))
    trainer.train()
    assert found[0] and not is_locked(folder)


def is_locked(folder):
    """As seen by another process."""
    code = "import sys; from dinox.engine.setup import check_output_folder_is_free as c; c(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True).returncode != 0


def test_weights_of_another_model_are_an_error(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    trainer = DinoxTrainer(make_cfg(tmp_path / "run", "MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    with pytest.raises(CheckpointError, match=r"other\.pth is not of this model"):
        trainer.resume_or_load(resume=False)


def test_weights_of_the_same_classes_in_another_order_are_put_right(finished, tmp_path):
    content = torch.load(f"{finished[0].OUTPUT_DIR}/model_final.pth", weights_only=True)
    content["dinox"]["class_names"] = content["dinox"]["class_names"][::-1]
    torch.save({key: content[key] for key in ("model", "dinox")}, tmp_path / "other.pth")
    trainer = DinoxTrainer(make_cfg(tmp_path / "run", "MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    trainer.resume_or_load(resume=False)
    name = "heads.class_heads.0.bias"
    assert torch.equal(trainer.model.state_dict()[name], content["model"][name].flip(0))


@pytest.mark.parametrize(
    "opts, overrides, error, message",
    [
        (["MODEL.META_ARCHITECTURE", "DetectionTransfromer"], [], ConfigError, "Did you mean 'DetectionTransformer'"),
        (["DATASETS.TRAIN", "('dinox_yaml_trian',)"], [], DataError, "not registered. Did you mean 'dinox_yaml_train'"),
        (["INPUT.CROP.ENABLED", True], [], ConfigError, r"INPUT\.CROP\.ENABLED is True.*crop_probability"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"], [], ConfigError, r"knows 'norm' or 'full_model' only"),
        (["SOLVER.MAX_ITER", 0], [], ValueError, r"train\.max_iter: expected a whole number of at least 1, got 0"),
        ([], ["optimizer.lr=1"], ConfigError, r"'optimizer\.lr=1': set SOLVER\.BASE_LR instead"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, opts, overrides, error, message):
    with pytest.raises(error, match=message):
        DinoxTrainer(make_cfg(tmp_path / "run", *opts, overrides=overrides))
    assert not (tmp_path / "run").exists()


def test_logging_is_left_as_it_was(finished):
    logger = logging.getLogger("dinox")
    assert logger.handlers == [] and logger.propagate


# ----------------------------------------------------------------------------------------------- detectron2's own tools


def test_default_predictor_detects(finished):
    cfg, trainer, _ = finished
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    found = DefaultPredictor(cfg)(np.full((50, 80, 3), 200, np.uint8))["instances"]
    assert found.image_size == (50, 80) and len(found) > 0
    weights = DefaultPredictor(cfg).model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_eval_only_as_in_detectron2s_train_net(finished):
    cfg, _, results = finished
    model = DinoxTrainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=True)
    assert DinoxTrainer.test(cfg, model)["bbox"] == pytest.approx(results["bbox"], nan_ok=True)


def test_the_script_of_the_readme_trains_and_evaluates(tmp_path, monkeypatch):
    code = re.search(r"```python\n# train_net\.py\n(.*?)```", (YAML.parents[1] / "README.md").read_text(), re.DOTALL)[1]
    settings = make_cfg(tmp_path / "run", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    file = tmp_path / "own.yaml"
    file.write_text(settings.dump())
    for options in ([], ["--eval-only", "--resume"]):
        monkeypatch.setattr("sys.argv", ["train_net.py", "--config-file", str(file), *options])
        exec(compile(code, "train_net.py", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "run" / "model_final.pth").is_file()
    assert "AP50" in (tmp_path / "run" / "log.txt").read_text()


def test_evaluation_needs_weights_of_the_whole_model(tmp_path):
    cfg = make_cfg(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no weights to evaluate: give MODEL\.WEIGHTS"):
        DinoxTrainer.evaluate(cfg, resume=True)
    cfg.MODEL.WEIGHTS = str(tmp_path / "part.pth")
    torch.save({"decoder.norm.weight": torch.ones(16)}, cfg.MODEL.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"part\.pth is not of this model.*to evaluate takes all of them"):
        DinoxTrainer.evaluate(cfg)


def sgd_warnings(caplog):
    return [record for record in caplog.records if "The optimizer is SGD" in record.getMessage()]


def test_default_trainer_runs_and_is_warned_of_sgd_once(tmp_path, caplog):
    cfg = make_cfg(tmp_path, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())
    train(DefaultTrainer, cfg)
    (warning,) = sgd_warnings(caplog)
    assert warning.levelno == logging.WARNING and "DinoxTrainer" in warning.getMessage()
    trainer, _ = train(DefaultTrainer, cfg, resume=True)
    assert trainer.start_iter == 2


def test_other_optimizers_are_not_warned_of(tmp_path, caplog):
    model = build_model(make_cfg(tmp_path))
    strangers = torch.nn.Linear(1, 1)
    for optimizer in (torch.optim.SGD(strangers.parameters(), lr=0.1), torch.optim.AdamW(model.parameters())):
        optimizer.step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # the second optimizer of a model is somebody's own business
    assert not sgd_warnings(caplog)
