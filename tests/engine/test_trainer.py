import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from dinox.engine import ClippedAdamW, Trainer
from dinox.engine.trainer import _check_same_settings


class Probe(nn.Module):
    """A model of one layer whose losses the test can bend; it remembers in which precision it computed."""

    def __init__(self, bend=lambda losses, batch: losses):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.bend = bend
        self.dtypes = []

    def forward(self, batch):
        out = self.layer(torch.stack([x["image"] for x in batch]))
        self.dtypes.append(out.dtype)
        return self.bend({"loss_class": out.float().square().mean(), "loss_bbox": out.float().abs().mean()}, batch)


def batches():
    for i in range(1000):
        yield [{"image": torch.full((4,), float(i % 3)), "file_name": f"images/{i}_{k}.jpg"} for k in range(2)]


def make_trainer(model=None, **options):
    model = model or Probe()
    optimizer = ClippedAdamW(model.parameters(), lr=0.01)
    return Trainer(model=model, data_loader=batches(), optimizer=optimizer, device="cpu", **options)


class Recorder(HookBase):
    """The scalars of each step."""

    def __init__(self):
        self.steps = []

    def after_step(self):
        self.steps.append({name: value for name, (value, _) in self.trainer.storage.latest().items()})


def run(trainer, steps):
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.train(0, steps)
    return recorder.steps


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_trains_in_each_precision_with_fp32_weights(precision, dtype):
    model = Probe()
    before = model.layer.weight.detach().clone()
    steps = run(make_trainer(model, precision=precision), 10)  # fp16 skips the first ones until its scale fits
    assert set(model.dtypes) == {dtype}
    assert model.layer.weight.dtype == torch.float32
    assert not torch.equal(model.layer.weight, before)
    assert all(step["total_loss"] == pytest.approx(step["loss_class"] + step["loss_bbox"]) for step in steps)
    assert steps[-1]["grad_norm"] > 0


def test_an_unknown_precision_is_an_error():
    with pytest.raises(ValueError, match=r"train\.amp\.dtype.*fp32, bf16, fp16.*'fp8'"):
        make_trainer(precision="fp8")


def test_a_non_finite_loss_names_iteration_term_and_files_and_spares_the_weights():
    def bend(losses, batch):
        return losses | {"loss_bbox": losses["loss_bbox"] * (float("nan") if "2_" in batch[0]["file_name"] else 1)}

    model = Probe(bend)
    trainer = make_trainer(model)
    states = []
    trainer.register_hooks([Recorder()])
    trainer.after_step = lambda: states.append(model.layer.weight.detach().clone())
    with pytest.raises(FloatingPointError) as error:
        trainer.train(0, 5)
    for text in ("non-finite loss at iteration 2", "loss_bbox = nan", "images/2_0.jpg, images/2_1.jpg", "lr 0.01"):
        assert text in str(error.value)
    assert "loss_class" not in str(error.value)
    assert torch.equal(model.layer.weight, states[-1])


def test_a_non_finite_gradient_of_a_finite_loss_is_noticed():
    trainer = make_trainer(Probe(lambda losses, batch: losses | {"loss_bbox": (losses["loss_bbox"] * 0).sqrt()}))
    with pytest.raises(FloatingPointError, match="non-finite gradient at iteration 0: grad_norm = nan"):
        trainer.train(0, 1)


def test_fp16_skips_steps_that_overflow_and_scales_less():
    model = Probe(lambda losses, batch: {"loss_class": losses["loss_class"] * 1e36})
    before = model.layer.weight.detach().clone()
    trainer = make_trainer(model, precision="fp16")
    steps = run(trainer, 2)
    assert torch.equal(model.layer.weight, before)
    assert trainer.grad_scaler.get_scale() == 2.0**14
    assert "grad_norm" not in steps[-1]


@pytest.mark.parametrize("kind", [ValueError, FloatingPointError])
def test_errors_inside_the_model_get_the_files(kind):
    def bend(losses, batch):
        raise kind("costs are NaN")

    with pytest.raises(kind, match=r"costs are NaN \(iteration 0, images: images/0_0.jpg, images/0_1.jpg\)"):
        make_trainer(Probe(bend)).train(0, 1)


def test_a_plain_optimizer_will_do():
    model = Probe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = run(Trainer(model=model, data_loader=batches(), optimizer=optimizer, device="cpu"), 2)
    assert steps[0]["grad_norm"] > 0  # measured, not clipped


def test_the_state_holds_optimizer_iteration_and_scaler():
    trainer = make_trainer(precision="fp16")
    trainer.train(0, 3)
    fresh = make_trainer(precision="fp16")
    fresh.load_state_dict(trainer.state_dict())
    assert fresh.iter == trainer.iter == 3
    assert fresh.grad_scaler.state_dict() == trainer.grad_scaler.state_dict()
    assert all(state["step"] == 3 for state in fresh.optimizer.state.values())


def test_a_checkpoint_of_another_precision_can_be_continued():
    state = make_trainer().state_dict()
    make_trainer(precision="fp16").load_state_dict(state)
    make_trainer().load_state_dict(make_trainer(precision="fp16").state_dict())


@pytest.mark.parametrize(
    "saved, message",
    [
        (0.1, "lr is 0.3 in the config and 0.1 in the checkpoint"),
        (0.3, "lr is 0.30000000000000004 in the config and 0.3 in the checkpoint"),
    ],
)
def test_rates_that_differ_are_told_as_they_are_written_unless_these_look_the_same(saved, message):
    groups = [[{"params": [0], "lr": lr}] for lr in (0.1 + 0.2, saved)]
    with pytest.raises(ValueError, match=message):
        _check_same_settings(*groups)
