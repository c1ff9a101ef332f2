"""Overrides of ``train`` that DinoxTrainer takes, or refuses before it writes anything."""

import logging

import pytest
import torch

from dinox.config import ConfigError
from dinox.engine import DinoxTrainer, parallel
from dinox.engine import yaml_trainer as module
from tests.engine.yaml_run import TEST, TRAIN, datasets, loggers, make_cfg  # noqa: F401

STOPPING = "train.early_stopping={{enabled: true, metric: {}}}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.parallel=fsdp"], r"train\.parallel: expected ddp, the only one that DinoxTrainer knows, got 'fsdp'"),
        (["train.parallel=dpp"], r"train\.parallel: expected ddp, .* got 'dpp'"),
        (["train.timeout=60"], r"train\.timeout=60: has no effect on DinoxTrainer"),
        (["train.timeout=-3"], r"train\.timeout: expected seconds, .*, got -3"),
        ([STOPPING.format("bbox/APtypo")], r"train\.early_stopping\.metric: .*'bbox/APtypo'"),
    ],
)
def test_what_has_no_effect_or_no_sense_is_told_before_anything_is_written(tmp_path, overrides, message):
    cfg = make_cfg(tmp_path / "run", "TEST.EVAL_PERIOD", 2, overrides=overrides)
    with pytest.raises((ValueError, ConfigError), match=message):
        DinoxTrainer(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["bbox/AP50", f"{TEST}/bbox/AP50", f"{TRAIN}/bbox/AP"])
def test_of_several_datasets_metrics_may_have_their_names(tmp_path, metric):
    opts = ("TEST.EVAL_PERIOD", 2, "DATASETS.TEST", (TEST, TRAIN))
    trainer = DinoxTrainer(make_cfg(tmp_path / "run", *opts, overrides=[STOPPING.format(metric)]))
    assert trainer._evaluations._goals.stopping.metric == metric
    with pytest.raises(ValueError, match=r"train\.early_stopping\.metric: "):
        DinoxTrainer(make_cfg(tmp_path / "other", *opts, overrides=[STOPPING.format(metric + "typo")]))


def test_null_switches_off_what_may_be_switched_off(tmp_path):
    keys = ["non_finite", "ddp", "ema", "compile", "lr_scaling"]
    trainer = DinoxTrainer(make_cfg(tmp_path / "run", overrides=[f"train.{key}=null" for key in keys]))
    assert trainer._trainer.non_finite.most_skipped == 0 and trainer._trainer.precision == "fp32"


@pytest.mark.parametrize(("allowed", "purpose"), [(True, "partial"), (False, "train")])
def test_weights_may_be_partial_on_request(tmp_path, monkeypatch, allowed, purpose):
    found = []
    monkeypatch.setattr(module, "load_weights", lambda *args, **options: found.append(options["purpose"]))
    overrides = [f"train.allow_partial={allowed}"]
    DinoxTrainer(make_cfg(tmp_path, "MODEL.WEIGHTS", "x.pth", overrides=overrides)).resume_or_load(resume=False)
    assert found == [purpose]


def test_batch_norms_that_see_parts_of_a_batch_are_warned_of(tmp_path, caplog):
    overrides = ["train.accumulation_steps=2", "model.backbone.bottom_up.norm=BN"]
    with caplog.at_level(logging.WARNING):
        trainer = DinoxTrainer(make_cfg(tmp_path, overrides=overrides))
    assert any(isinstance(each, torch.nn.BatchNorm2d) for each in trainer.model.modules())
    assert "train.accumulation_steps=2" in caplog.text and "BatchNorm layers" in caplog.text


def test_options_of_ddp_are_those_of_the_overrides(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(parallel, "create_ddp_model", lambda model, **options: found.append(options) or model)
    DinoxTrainer(make_cfg(tmp_path, overrides=["train.ddp.find_unused_parameters=true"]))
    assert found == [{"broadcast_buffers": False, "find_unused_parameters": True, "fp16_compression": False}]
