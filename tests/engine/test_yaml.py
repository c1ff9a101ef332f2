"""Yaml users: build_model, DefaultPredictor, DefaultTrainer and DinoxTrainer from detectron2's CfgNode."""

import copy
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from torch import nn

import dinox
from dinox.checkpoint import CheckpointError, read_description
from dinox.config import ConfigError, lazy_config, load_config, merge_yaml
from dinox.data import DataError, register_shapes
from dinox.engine import ClippedAdamW, DinoxTrainer
from dinox.modeling import DetectionTransformer

YAML = Path(__file__).parents[2] / "projects" / "dino" / "configs" / "yaml"

SMALL = [
    "model.embed_dim=16",
    "model.num_queries=10",
    "model.encoder.feed_forward_dim=16",
    "model.decoder.num_layers=2",
    "model.backbone.bottom_up.width=8",
]

TRAIN, TEST = "dinox_yaml_train", "dinox_yaml_val"


@pytest.fixture(scope="module", autouse=True)
def loggers():
    """DefaultTrainer sets up detectron2's logger for good; here until the last test of this file."""
    both = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in both]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    setup_logger.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def datasets():
    for seed, name in enumerate((TRAIN, TEST)):
        register_shapes(name, seed=200 + seed, num_images=8, size=96, root=os.environ["DINOX_TEST_DATASETS"])
    yield
    for name in (TRAIN, TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_cfg(output_dir, *opts, overrides=()):
    """The example of the project, small, for four steps."""
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    merge_yaml(cfg, str(YAML / "dino_shapes.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (TEST,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 4, (3,), 2
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.SEED = "cpu", str(output_dir), 1
    cfg.MODEL.DINOX.OVERRIDES = [*cfg.MODEL.DINOX.OVERRIDES, *SMALL, *overrides]
    cfg.merge_from_list(list(opts))
    return cfg


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


# ------------------------------------------------------------------------------------------------------------ the model


def test_build_model_gives_the_zoos_model(tmp_path):
    model = build_model(make_cfg(tmp_path, overrides=["model.query_groups.denoising=null"]))
    assert type(model) is DetectionTransformer
    assert (model.num_classes, model.num_queries) == (6, 10)
    assert not any("denoising" in name for name, _ in model.named_parameters())


def test_the_config_for_coco_is_the_papers():
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    merge_yaml(cfg, str(YAML / "dino_r50_4scale_12ep.yaml"))
    lazy = lazy_config(cfg)
    zoo = dinox.model_zoo.get_config("dino/dino_r50_4scale_12ep")
    assert lazy.model == zoo.model and lazy.optimizer == zoo.optimizer
    for split in ("train", "test"):
        ours, theirs = (instantiate(node.dataloader[split].mapper.augmentations) for node in (lazy, zoo))
        assert str(ours) == str(theirs)
    assert lazy.dataloader.train.total_batch_size == zoo.dataloader.train.total_batch_size == 16
    assert lazy.train.max_iter == zoo.train.max_iter == 90_000
    assert lazy.train.init_checkpoint == zoo.train.init_checkpoint
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == ((82_500,), 0)


@pytest.mark.parametrize(
    "opts, overrides, message",
    [
        (["INPUT.FORMAT", "BGR"], [], r"INPUT\.FORMAT is BGR, but the model .* has input_format RGB.*MODEL\.DINOX\."),
        (["MODEL.PIXEL_STD", [1.0, 1.0, 1.0]], [], r"MODEL\.PIXEL_STD is \[1\.0,1\.0,1\.0\].*'model\.pixel_std=\["),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 3], [], r"ROI_HEADS\.NUM_CLASSES is 3, but the model .* has 6 classes.*num_"),
        ([], ["model.num_classes=5"], rf"has 5 classes, but the dataset '{TRAIN}' of DATASETS has 6.*num_classes=6"),
        (["MODEL.DINOX.CONFIG", ""], [], r"MODEL\.DINOX\.CONFIG is empty: give the name"),
        (["MODEL.DINOX.CONFIG", "dino/dino_dem"], [], r"'dino/dino_dem' not found.*Did you mean 'dino/dino_demo'"),
        ([], ["model.num_querys=3"], r"MODEL\.DINOX\.OVERRIDES: override .*Did you mean 'model\.num_queries'"),
        ([], ["model.postprocess._target_=os.system"], r"'os\.system' is refused"),
        ([], ["train.output_dir=${oc.env:HOME}"], r"'\$\{oc\.env:HOME\}' is refused"),
        ([], ["dataloader.train.cfg={}"], r"'dataloader\.train\.cfg' is refused"),
        ([], ["model.backbone.model_name=hf-hub:a/b"], r"'hf-hub:a/b' is refused"),
    ],
)
def test_what_contradicts_the_model_is_an_error(tmp_path, opts, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_model(make_cfg(tmp_path, *opts, overrides=overrides))


def test_keys_must_have_been_added():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DetectionTransformer"
    with pytest.raises(ConfigError, match=r"call dinox\.add_dinox_config\(cfg\) after get_cfg\(\)"):
        build_model(cfg)


GET_DICTS = "{_target_: detectron2.data.get_detection_dataset_dicts, names: dinox_shapes_val}"
CREATE_MODEL = "{_target_: timm.create_model, model_name: resnet18}"


@pytest.mark.parametrize(
    "overrides, refused",
    [
        ([f"model.postprocess={GET_DICTS}", "model.postprocess={proposal_files: [PICKLE]}"], "proposal_files"),
        ([f"model.postprocess={GET_DICTS}", "model={postprocess.proposal_files: [PICKLE]}"], "proposal_files"),
        ([f"model.postprocess={CREATE_MODEL}", "model.postprocess={checkpoint_path: PICKLE}"], "checkpoint_path"),
        ([f"model.postprocess={CREATE_MODEL}", "model={postprocess: {model_name: 'hf-hub:a/m'}}"], "model_name"),
        ([f"model.postprocess={CREATE_MODEL}", "model={postprocess: {cfg: {A: 1}}}"], "cfg"),
    ],
)
def test_overrides_that_are_harmful_only_together_run_nothing(tmp_path, overrides, refused):
    canary, file = tmp_path / "canary", tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(MakesFolder(str(canary))))
    overrides = [text.replace("PICKLE", f"'{file}'") for text in overrides]
    with pytest.raises(ConfigError) as caught:
        build_model(make_cfg(tmp_path, overrides=overrides))
    assert not canary.exists()
    assert refused in str(caught.value)
    pickle.loads(file.read_bytes())
    assert canary.exists()  # had it been read


class MakesFolder:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_settings_of_the_yaml_are_not_evaluated(tmp_path):
    with pytest.raises(ConfigError, match=r"'train\.output_dir': '\$\{oc\.env:HOME\}' is refused"):
        lazy_config(make_cfg("${oc.env:HOME}"))


def test_keys_of_other_detectors_are_said_once_to_have_no_effect(tmp_path, caplog):
    cfg = make_cfg(tmp_path, "MODEL.RESNETS.DEPTH", 152)
    build_model(cfg)
    lazy_config(cfg)
    assert caplog.text.count("MODEL.RESNETS.DEPTH have no effect") == 1


def test_the_number_of_detections_is_the_yamls_if_it_says_one(tmp_path):
    assert build_model(make_cfg(tmp_path)).postprocess.num_detections == 100  # of dino_demo
    assert build_model(make_cfg(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 7)).postprocess.num_detections == 7
    with pytest.raises(ConfigError, match=r"TEST\.DETECTIONS_PER_IMAGE: expected a whole number of at least 1, got 0"):
        build_model(make_cfg(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 0))
    both = make_cfg(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 7, overrides=["model.postprocess.num_detections=8"])
    with pytest.raises(ConfigError, match=r"set TEST\.DETECTIONS_PER_IMAGE instead"):
        build_model(both)


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.AUG.ENABLED", True),
        ("VIS_PERIOD", 100),
        ("INPUT.MASK_FORMAT", "bitmask"),
        ("DATASETS.PROPOSAL_FILES_TRAIN", ("x.pkl",)),
        ("DATALOADER.REPEAT_THRESHOLD", 0.1),
        ("TEST.KEYPOINT_OKS_SIGMAS", [0.1]),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 40.0, 0.5]]),
        ("SOLVER.MOMENTUM", 0.5),
        ("SOLVER.NESTEROV", True),
        ("INPUT.MIN_SIZE_TRAIN", (0,)),
        ("INPUT.MIN_SIZE_TEST", 0),
    ],
)
def test_keys_that_would_be_ignored_are_an_error(tmp_path, key, value):
    cfg = make_cfg(tmp_path)
    lazy_config(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=re.escape(key)):
        lazy_config(cfg)


def test_a_program_is_not_run_because_a_yaml_names_it(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(ConfigError, match=r"own\.py is a program, which a yaml config may not run"):
        build_model(make_cfg(tmp_path, "MODEL.DINOX.CONFIG", str(tmp_path / "own.py")))
    assert not canary.exists()


# ---------------------------------------------------------------------------------------------------------- the trainer


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
            os.kill(os.getpid(), signal.SIGTERM)
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


# -------------------------------------------------------------------------------------------------------- reading yaml


def test_a_misspelt_key_has_a_did_you_mean(tmp_path):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    file = tmp_path / "own.yaml"
    file.write_text("VERSION: 2\nSOLVER:\n  BASE_LRR: 0.1\n")
    with pytest.raises(
        ConfigError, match=r"own\.yaml:3: Non-existent config key: SOLVER\.BASE_LRR\..*'SOLVER\.BASE_LR"
    ):
        merge_yaml(cfg, str(file))
    with pytest.raises(ConfigError, match=r"Did you mean 'MODEL\.DINOX\.CONFIG'"):
        merge_yaml(cfg, str(YAML / "dino_shapes.yaml"), ["MODEL.DINOX.CONFG", "x"])


def test_a_yaml_that_could_run_code_is_refused(tmp_path):
    cfg, canary, file = get_cfg(), tmp_path / "canary", tmp_path / "bad.yaml"
    file.write_text(f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.mkdir [{canary}]\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: .*python/object/apply:os\.mkdir.*could run code"):
        merge_yaml(cfg, str(file))
    assert not canary.exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"own\.yaml: expected a mapping at the top, got nothing"),
        ("3\n", r"own\.yaml: expected a mapping at the top, got int"),
        ("- a\n", r"own\.yaml: expected a mapping at the top, got list"),
        ("VERSION: 2\nMODEL: null\n", r"own\.yaml:2: MODEL: expected keys below it, such as MODEL\.\w+, got None"),
        ("SOLVER: {CLIP_GRADIENTS: 3}\n", r"own\.yaml:1: SOLVER\.CLIP_GRADIENTS: expected keys below it"),
        ("OUTPUT_DIR: a\0b\n", r"own\.yaml: not valid yaml: it holds NUL bytes"),
        ("OUTPUT_DIR: !!bool x\n", r"own\.yaml:1: not valid yaml: expected a bool"),
        ("_BASE_: own.yaml\n", r"own\.yaml: _BASE_ leads in a circle: .*own\.yaml -> .*own\.yaml"),
        ("_BASE_: [3]\n", r"own\.yaml:1: _BASE_: expected a file, got 3"),
        ("_BASE_: no.yaml\n", r"/no\.yaml, the _BASE_ of .*own\.yaml: No such file or directory"),
    ],
)
def test_a_damaged_yaml_is_told_in_one_line(tmp_path, text, message):
    cfg, file = get_cfg(), tmp_path / "own.yaml"
    dinox.add_dinox_config(cfg)
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        merge_yaml(cfg, str(file))


def test_files_are_based_on_others(tmp_path):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    (tmp_path / "base.yaml").write_text("SOLVER:\n  MAX_ITER: 7\n  STEPS: (5,)\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nVERSION: 2\nSOLVER:\n  STEPS: (6,)\n")
    merge_yaml(cfg, str(tmp_path / "own.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (7, (6,))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.MAX_ITER.X", "3"], r"SOLVER\.MAX_ITER\.X: SOLVER\.MAX_ITER is 1600 and has no keys below it"),
        (["SOLVER.MAX_ITER"], r"overrides SOLVER\.MAX_ITER: Override list has odd length"),
        (["MODEL", "3"], r"overrides MODEL 3: MODEL: expected a key below it, such as MODEL\.\w+"),
    ],
)
def test_damaged_overrides_are_told_in_one_line(opts, message):
    cfg = get_cfg()
    dinox.add_dinox_config(cfg)
    with pytest.raises(ConfigError, match=message):
        merge_yaml(cfg, str(YAML / "dino_shapes.yaml"), opts)
