"""fp16: steps that the scaler skips are counted, in metrics and checkpoints, and too many in a row are an error."""

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import LRScheduler
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from dinox.engine import ClippedAdamW, Trainer
from dinox.engine.loss_scaling import MAX_SKIPS_IN_A_ROW, LossScaler
from tests.engine.test_trainer import Probe, batches, make_trainer, run


def overflowing(model, iterations):
    """The gradient of these iterations is larger than anything that a scale could mend."""

    def bend(losses, batch):
        number = int(batch[0]["file_name"].split("/")[1].split("_")[0])
        return {"loss_class": losses["loss_class"] * (1e38 if number in iterations else 1)}

    model.bend = bend
    return model


def make_fp16(iterations=(), **options):
    trainer = make_trainer(overflowing(Probe(), set(iterations)), precision="fp16", **options)
    trainer.grad_scaler._init_scale = 8.0  # so that no step is skipped for another reason
    return trainer


def test_skipped_steps_are_a_metric_beside_the_scale():
    steps = run(make_fp16([1, 2, 4]), 6)
    assert [step["skipped_steps"] for step in steps] == [0, 1, 2, 2, 3, 3]
    assert [step["grad_scale"] for step in steps] == [8, 8, 4, 2, 2, 1]  # with which the step was computed


class Written(HookBase):
    """What writers write of each step."""

    def __init__(self):
        self.steps = []

    def after_step(self):
        found = self.trainer.storage.latest_with_smoothing_hint(20)
        self.steps.append({name: value for name, (value, _) in found.items()})


def test_counts_and_scale_are_written_as_they_are_and_not_as_medians():
    trainer, written = make_fp16([1, 2, 4]), Written()
    trainer.register_hooks([written])
    trainer.train(0, 6)
    assert [step["skipped_steps"] for step in written.steps] == [0, 1, 2, 2, 3, 3]
    assert [step["grad_scale"] for step in written.steps] == [8, 8, 4, 2, 2, 1]


def test_a_skipped_step_has_not_updated_the_weights():
    """Averages of weights ask for it."""
    trainer, updated = make_fp16([1, 2]), []
    trainer.after_step = lambda: updated.append(trainer.updated)
    trainer.train(0, 4)
    assert updated == [True, False, False, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_fp16_there_is_neither(precision):
    (step,) = run(make_trainer(precision=precision), 1)
    assert "skipped_steps" not in step and "grad_scale" not in step


def test_only_so_many_in_a_row_are_allowed():
    run(make_fp16([1, 2, 3, 5, 6, 7], max_skips_in_a_row=3), 9)
    with pytest.raises(FloatingPointError):
        run(make_fp16([1, 2, 3, 4], max_skips_in_a_row=3), 9)


def test_the_default_takes_the_scale_from_its_start_to_below_one():
    assert LossScaler("cpu", enabled=True).get_scale() * 0.5**MAX_SKIPS_IN_A_ROW == 1 / 16


def test_counts_go_through_checkpoints():
    trainer = make_fp16([1, 3, 4, 5], max_skips_in_a_row=3)
    trainer.train(0, 5)
    resumed = make_fp16(max_skips_in_a_row=3)
    resumed.load_state_dict(trainer.state_dict())
    assert (resumed.grad_scaler.skipped_steps, resumed.grad_scaler.skipped_in_a_row) == (3, 2)
    resumed.grad_scaler.count(True)
    assert not resumed.grad_scaler.gave_up
    resumed.grad_scaler.count(True)
    assert resumed.grad_scaler.gave_up


def test_a_checkpoint_without_counts_can_be_continued():
    state = make_fp16().state_dict()
    del state["grad_scaler"]["skipped_steps"], state["grad_scaler"]["skipped_in_a_row"]
    make_fp16().load_state_dict(state)


def test_an_optimizer_that_does_not_clip_counts_too():
    model = overflowing(Probe(), {0})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model=model, data_loader=batches(), optimizer=optimizer, device="cpu", precision="fp16")
    assert run(trainer, 1)[0]["skipped_steps"] == 1


def test_the_whole_gradient_is_clipped_after_unscaling():
    """The step is that of the unscaled gradient, whose norm is measured; clipped to 0.1, AdamW's first moment is 0.1
    times that. Scales are powers of 2, which only move the exponents."""
    moments = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        layer = nn.Linear(4, 1)
        optimizer = ClippedAdamW(layer.parameters(), max_grad_norm=0.1)
        trainer = Trainer(
            model=nn.Sequential(layer), data_loader=[], optimizer=optimizer, device="cpu", precision="fp16"
        )
        trainer.grad_scaler._init_scale = scale
        trainer.grad_scaler.scale(layer(torch.full((4,), 3.0)).square().sum()).backward()
        assert trainer._clip_gradients() > 1
        trainer.grad_scaler.step(optimizer)
        moments.append(torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in layer.parameters()]))
    assert torch.equal(*moments)
    assert moments[0].norm() == pytest.approx(0.1 * 0.1, rel=1e-5)  # (1 - beta1) * max_grad_norm


def test_a_first_step_that_is_skipped_is_not_taken_for_a_mistake_of_the_code(recwarn):
    trainer = make_fp16([0])
    trainer.register_hooks([LRScheduler(scheduler=LRMultiplier(trainer.optimizer, ConstantParamScheduler(1.0), 3))])
    trainer.train(0, 2)
    assert trainer.grad_scaler.skipped_steps == 1
    assert not [each for each in recwarn if "lr_scheduler.step" in str(each.message)]
