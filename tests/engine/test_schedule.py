import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.solver import LRMultiplier
from omegaconf.errors import InterpolationResolutionError

from dinox.config import load_config
from dinox.engine import cosine_schedule, step_schedule
from tests.engine.conftest import TINY_CONFIG


def coco_schedule(*overrides):
    return load_config(
        TINY_CONFIG, ["schedule.images_per_epoch=120000", "dataloader.train.total_batch_size=16", *overrides]
    )


@pytest.mark.parametrize(
    "epochs, drop, iterations, drop_iteration",
    [(12, 11, 90_000, 82_500), (24, 20, 180_000, 150_000), (36, 30, 270_000, 225_000)],
)
def test_the_papers_schedules_on_coco(epochs, drop, iterations, drop_iteration):
    cfg = coco_schedule(f"schedule.epochs={epochs}", f"schedule.drop_epochs=[{drop}]")
    multiplier = instantiate(cfg.lr_multiplier)
    assert cfg.train.max_iter == iterations
    assert cfg.train.eval_period == cfg.train.checkpointer.period == 7500
    assert multiplier((drop_iteration - 1) / iterations) == 1.0
    assert multiplier(drop_iteration / iterations) == pytest.approx(0.1)
    assert multiplier(1.0) == pytest.approx(0.1)  # asked for after the last step


def test_half_the_batch_takes_twice_the_iterations():
    assert coco_schedule("schedule.epochs=12", "dataloader.train.total_batch_size=8").train.max_iter == 180_000


def test_fewer_iterations_shrink_the_schedule():
    cfg = coco_schedule("schedule.epochs=12", "schedule.drop_epochs=[11]", "train.max_iter=1200")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    rates = []
    for _ in range(1200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:1100] == [1.0] * 1100
    assert rates[1100:] == pytest.approx([0.1] * 100)


def test_stock_loading_of_a_config_knows_the_arithmetic():
    cfg = LazyConfig.apply_overrides(LazyConfig.load(TINY_CONFIG), ["schedule.epochs=6"])
    assert cfg.train.max_iter == 12


def test_warmup_grows_linearly():
    multiplier = step_schedule(epochs=10, drop_epochs=[9], warmup_epochs=1, warmup_factor=0.5)
    assert multiplier(0.0) == pytest.approx(0.5)
    assert multiplier(0.05) == pytest.approx(0.75)
    assert multiplier(0.5) == 1.0
    assert multiplier(0.95) == pytest.approx(0.1)


def test_cosine_falls_to_the_final_factor():
    multiplier = cosine_schedule(epochs=10, final_factor=0.2)
    assert [multiplier(0.0), multiplier(0.5), multiplier(1.0)] == pytest.approx([1.0, 0.6, 0.2])


@pytest.mark.parametrize("drop_epochs", [[12], [0], [11, 10], [13]])
def test_drops_outside_of_the_schedule_are_errors(drop_epochs):
    with pytest.raises(ValueError, match=r"drop_epochs .* epochs=12"):
        step_schedule(epochs=12, drop_epochs=drop_epochs)


def test_a_batch_of_nothing_is_an_error():
    with pytest.raises((ValueError, InterpolationResolutionError), match="batch_size"):
        _ = coco_schedule("dataloader.train.total_batch_size=0").train.max_iter
