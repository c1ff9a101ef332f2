"""``train.lr_scaling``: the learning rate of another batch size."""

import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dinox.engine import train
from dinox.engine.lr_scaling import LRScaling

LR = 1e-4  # of the tiny config


def scaling(batch=32, **settings):
    cfg = {"train": {"lr_scaling": settings}, "dataloader": {"train": {"total_batch_size": batch}}}
    return LRScaling.of(OmegaConf.create(cfg))


def scaled(cfg, rule="linear", *, batch=None, reference=4):
    cfg.train.lr_scaling = {"rule": rule, "reference_batch_size": reference}
    if batch is not None:
        cfg.dataloader.train.total_batch_size = batch
    cfg.dataloader.pop("evaluator", None)
    return cfg


def learning_rates(cfg):
    lines = (Path(cfg.train.output_dir) / "metrics.json").read_text().splitlines()
    return {e["iteration"]: e["lr"] for e in map(json.loads, lines) if "lr" in e}


@pytest.mark.parametrize(("rule", "factor"), [(None, 1), ("linear", 2), ("sqrt", math.sqrt(2))])
def test_the_rules(rule, factor):
    assert scaling(rule=rule, reference_batch_size=16).factor == factor


def test_without_the_key_nothing_is_scaled():
    assert LRScaling.of(OmegaConf.create({"train": {}})) == LRScaling()


def test_every_parameter_group_is_scaled_once():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:]}], lr=1.0)
    scaling(rule="linear", reference_batch_size=16).apply(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "liner"}, r"train.lr_scaling.rule: expected 'linear', 'sqrt' or null, got 'liner'"),
        ({"rule": "sqrt", "reference_batch_size": 0}, r"train.lr_scaling.reference_batch_size: expected .*, got 0"),
        ({"rule": "sqrt", "reference_batch_size": 1.5}, r"train.lr_scaling.reference_batch_size: expected .*, got 1.5"),
        ({"rules": "sqrt"}, r"train.lr_scaling has no 'rules', only rule, reference_batch_size"),
        ("linear", r"train.lr_scaling: expected \{rule: .*, got 'linear'"),
    ],
)
def test_settings_that_cannot_be_are_errors_before_anything_is_written(tiny_cfg, settings, message):
    tiny_cfg.train.lr_scaling = settings
    with pytest.raises(ValueError, match=message):
        train(tiny_cfg, console="off")
    assert not Path(tiny_cfg.train.output_dir).exists()


def test_a_run_scales_its_learning_rate_and_says_so(tiny_cfg, capsys):
    cfg = scaled(tiny_cfg, reference=2)  # batches are of 4
    train(cfg)
    rates = learning_rates(cfg)
    assert rates[0] == pytest.approx(2 * LR) and rates[5] == pytest.approx(0.2 * LR)  # it drops after two epochs
    wanted = "Learning rate 0.0001 -> 0.0002: train.lr_scaling.rule=linear, batches of 4 images instead of 2"
    assert wanted in " ".join(capsys.readouterr().out.split())


def resumed(cfg, capsys, **changes):
    """Three steps, and the rest after ``changes``. Returns the second part's log and learning rates."""
    cfg.schedule.drop_epochs = []
    cfg.dataloader.pop("evaluator")
    stop = cfg.copy()
    stop.train.max_iter = 3
    train(stop, console="off")
    capsys.readouterr()
    train(scaled(cfg, **changes), resume=True)
    return " ".join(capsys.readouterr().out.split()), learning_rates(cfg)


def test_a_resumed_run_with_another_batch_has_that_batchs_rate(tiny_cfg, capsys):
    tiny_cfg.train.lr_scaling = {"rule": "linear", "reference_batch_size": 4}
    out, rates = resumed(tiny_cfg, capsys, batch=2)
    assert "Resuming with other learning rates than the checkpoint's: train.lr_scaling.rule=linear, batches of 2" in out
    assert "3 iterations count as 6" in out
    assert rates[2] == pytest.approx(LR) and rates[6] == pytest.approx(LR / 2)


def test_the_rule_may_be_switched_on_and_off_by_resuming(tiny_cfg, capsys):
    tiny_cfg.train.max_iter = 6
    _, rates = resumed(tiny_cfg, capsys, reference=1)
    assert rates[2] == pytest.approx(LR) and rates[3] == pytest.approx(4 * LR)
    tiny_cfg.train.max_iter, tiny_cfg.train.lr_scaling.rule = 8, None
    train(tiny_cfg, resume=True, console="off")
    assert learning_rates(tiny_cfg)[7] == pytest.approx(LR)


def test_an_unchanged_rule_says_nothing_when_resumed(tiny_cfg, capsys):
    tiny_cfg.train.lr_scaling = {"rule": "sqrt", "reference_batch_size": 3}
    out, rates = resumed(tiny_cfg, capsys, rule="sqrt", reference=3)
    assert "other learning rates" not in out
    assert rates[5] == pytest.approx(rates[0]) == pytest.approx(LR * math.sqrt(4 / 3))


def test_another_rate_before_scaling_is_still_an_error(tiny_cfg):
    cfg = scaled(tiny_cfg.copy())
    cfg.train.max_iter = 3
    train(cfg, console="off")
    tiny_cfg.optimizer.lr = 2e-4
    with pytest.raises(ValueError, match=r"lr is 0.0002 in the config and 0.0001 in the checkpoint"):
        train(scaled(tiny_cfg, batch=2), resume=True, console="off")
