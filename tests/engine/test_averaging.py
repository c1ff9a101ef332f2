"""The average of the weights: by hand, in evaluation, in checkpoints."""

import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.checkpoint import DetectionCheckpointer
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dinox.checkpoint import Checkpointer, CheckpointError, load_weights
from dinox.config import load_config
from dinox.engine import ClippedAdamW, TrainingStopped, evaluate, train
from dinox.engine.averaging import AveragedState, WeightAverage
from tests.engine.conftest import TINY_CONFIG
from tests.engine.tiny import TinyDetector
from tests.modeling.test_distributed import TIME_LIMIT, free_port


class Line(nn.Module):
    """A weight, a bias that is the same tensor, a running mean and a counter."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=dtype))
        self.bias = self.weight
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def make_average(model, *, decay=0.5, warmup=0, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
    average = WeightAverage(model=model, optimizer=optimizer, decay=decay, warmup=warmup)
    average.trainer = SimpleNamespace(start_iter=0)
    average.before_train()
    return average, optimizer


def step(average, optimizer, gradient=1.0):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    average.after_step()


def test_averages_are_those_worked_out_by_hand():
    model = Line()
    average, optimizer = make_average(model)
    model.mean.fill_(4.0)
    model.count.fill_(7)
    step(average, optimizer)  # 1 -> 0
    step(average, optimizer)  # 0 -> -1
    state = average.averaged_state()
    assert state.keys() == model.state_dict().keys()
    # Halves are exact: 1 -> (1 + 0) / 2 -> (0.5 - 1) / 2, and 0 -> (0 + 4) / 2 -> (2 + 4) / 2.
    assert state["weight"].tolist() == [-0.25, -0.25] and state["bias"] is not model.bias
    assert state["bias"].data_ptr() == state["weight"].data_ptr()  # written once, as the model's own
    assert state["mean"].tolist() == [3.0, 3.0]
    assert state["count"].item() == 7
    assert model.weight.tolist() == [-1.0, -1.0]
    assert average.state_dict() == {"steps": 2}


def test_the_warm_up_is_that_of_mmdetections_hook_and_ends_at_the_decay():
    average, _ = make_average(Line(), decay=0.9999, warmup=2000)
    for done in (0, 1, 1000):  # ExpMomentumEMAHook counts iterations from 0 and weighs the new weights with
        momentum = (1 - 0.0001) * math.exp(-(1 + done) / 2000) + 0.0001
        assert average.decay_of(done + 1) == pytest.approx(1 - momentum, abs=1e-12)  # float64 rounding
    assert average.decay_of(10**6) == 0.9999


def test_weights_in_half_precision_are_averaged_in_float32():
    model = Line(torch.bfloat16)
    average, optimizer = make_average(model, decay=0.999)
    step(average, optimizer)
    averaged = average.averaged_state()["weight"]
    # bfloat16 has no number between 1 and 1 - 2**-8. float32 rounds to 1e-7.
    assert averaged.dtype == torch.float32 and averaged.tolist() == pytest.approx([0.999] * 2, abs=2e-7)
    with average.applied():
        assert model.weight.dtype == torch.bfloat16
    assert average.averaged_state()["weight"].equal(averaged) and model.weight.tolist() == [0.0, 0.0]


def test_a_step_that_the_scaler_skipped_does_not_count():
    model = Line()
    average, optimizer = make_average(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (math.inf, 2.0, math.nan):
        model.weight.grad = torch.full_like(model.weight, gradient)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        average.after_step()
    assert average.state_dict() == {"steps": 1}
    assert torch.isfinite(average.averaged_state()["weight"]).all()


def test_an_iteration_without_a_step_does_not_count():
    average, optimizer = make_average(Line())
    average.after_step()
    step(average, optimizer)
    average.after_step()
    assert average.state_dict() == {"steps": 1}


def test_a_step_through_the_step_of_a_base_class_counts_once():
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # from now on torch calls hooks in AdamW.step as well
    model = Line()
    average, optimizer = make_average(model, optimizer=ClippedAdamW(model.parameters()))
    step(average, optimizer)
    assert average.state_dict() == {"steps": 1}
    average.after_train()
    optimizer.step()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_weights_are_back_however_it_ends(error):
    model = Line()
    average, optimizer = make_average(model)
    step(average, optimizer)
    before = model.weight.data_ptr()
    with pytest.raises(error), average.applied():
        assert model.weight.tolist() == [0.5, 0.5]
        with pytest.raises(AssertionError, match="nothing may be saved"):
            average.averaged_state()
        raise error
    assert model.weight.tolist() == [0.0, 0.0] and model.weight.data_ptr() == before


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.line(x)).square().mean() + self.line(x).mean()


def train_in_shards(rank, port, file):
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    dist.barrier()
    model = fully_shard(Normed(), mesh=init_device_mesh("cpu", (2,)))
    state = run(model)
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in state.items()}
    if rank == 0:
        torch.save(whole, file)


def run(model):
    """Three steps on the same images; the averages, after they were applied and taken away again."""
    average, optimizer = make_average(model, decay=0.9, warmup=2)
    for i in range(3):
        optimizer.zero_grad()
        model(torch.arange(12.0).reshape(4, 3) * (i + 1) / 10).backward()
        optimizer.step()
        average.after_step()
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        assert float(model(torch.ones(4, 3)).detach()) != 0
    parameters = [name for name, _ in model.named_parameters()]
    assert all(torch.equal(to_local(own[name]), to_local(model.state_dict()[name])) for name in parameters)
    return average.averaged_state()


def to_local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.timeout(TIME_LIMIT)
def test_weights_that_are_shared_out_among_processes_have_the_same_averages(tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="FSDP2")
    mp.start_processes(train_in_shards, (free_port(), str(tmp_path / "x.pth")), nprocs=2, start_method="fork")
    expected, found = run(Normed()), torch.load(tmp_path / "x.pth", weights_only=True)
    for name, tensor in expected.items():
        # float32: gradients are a mean of two processes' equal ones
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def ema_cfg(tmp_path):
    """Six steps, with a checkpoint and an evaluation after every second one."""
    overrides = ["train.ema={enabled: true, decay: 0.9, warmup: 3}", "train.eval_period=2", "optimizer.lr=0.01"]
    return load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}", *overrides, "train.checkpointer.period=2"])


@pytest.fixture
def evaluated(monkeypatch):
    """The weights that evaluations have seen, in their order."""
    seen = []

    def evaluation(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"bbox/AP": float(len(seen))}

    monkeypatch.setattr("dinox.engine.training._prepare_evaluation", lambda cfg: evaluation)
    return seen


def read(cfg, name="model_final"):
    return torch.load(Path(cfg.train.output_dir) / f"{name}.pth", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_sees_the_average_and_training_goes_on_without_it(ema_cfg, evaluated, tmp_path, capsys):
    train(ema_cfg)
    assert "Evaluating the averaged weights (train.ema)" in capsys.readouterr().out
    files = [read(ema_cfg, name) for name in ("model_0000001", "model_0000003", "model_final")]
    for seen, file in zip(evaluated, files, strict=True):
        assert same(seen, file["ema"]) and not same(seen, file["model"])
    assert files[-1]["trainer"]["hooks"]["WeightAverage"] == {"steps": 6}
    # What was best: weights to use, nothing to resume.
    assert same(read(ema_cfg, "model_best")["model"], files[-1]["ema"])
    ema_cfg.train.ema.enabled = False
    ema_cfg.train.output_dir = str(tmp_path / "without")
    train(ema_cfg, console="off")
    without = read(ema_cfg)
    assert same(without["model"], files[-1]["model"]) and "ema" not in without


def test_a_step_that_is_skipped_for_a_loss_that_is_not_finite_does_not_count(ema_cfg, evaluated, monkeypatch):
    losses, calls = TinyDetector._losses, []

    def infinite_once(self, *args):
        calls.append(args)
        return {name: loss * (math.inf if len(calls) == 3 else 1) for name, loss in losses(self, *args).items()}

    monkeypatch.setattr(TinyDetector, "_losses", infinite_once)
    ema_cfg.train.non_finite.most_skipped = 1
    train(ema_cfg, console="off")
    assert len(calls) >= 6 and read(ema_cfg)["trainer"]["hooks"]["WeightAverage"] == {"steps": 5}


def test_a_batch_in_parts_is_one_step(ema_cfg, evaluated):
    ema_cfg.train.accumulation_steps = 2
    train(ema_cfg, console="off")
    assert read(ema_cfg)["trainer"]["hooks"]["WeightAverage"] == {"steps": 6}


def test_an_evaluation_that_a_signal_ends_leaves_the_weights_of_training(ema_cfg, evaluated, monkeypatch, tmp_path):
    ema_cfg.train.checkpointer.period = 100
    train(ema_cfg, console="off")
    whole = read(ema_cfg)

    def be_stopped(model):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("was waited for")

    ema_cfg.train.output_dir = str(tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        patch.setattr("dinox.engine.training._prepare_evaluation", lambda cfg: be_stopped)
        train(ema_cfg, console="off")
    evaluated.clear()
    train(ema_cfg, resume=True, console="off")
    assert len(evaluated) == 3  # the first was made up for
    assert same(read(ema_cfg)["model"], whole["model"]) and same(read(ema_cfg)["ema"], whole["ema"])


def test_switched_on_when_a_run_is_resumed_it_begins_with_the_weights_and_says_so(ema_cfg, evaluated, capsys):
    ema_cfg.train.ema.enabled, ema_cfg.train.max_iter = False, 4
    train(ema_cfg, console="off")
    at_four = read(ema_cfg)["model"]
    ema_cfg.train.ema.enabled, ema_cfg.train.max_iter = True, 5
    ema_cfg.train.ema.decay, ema_cfg.train.ema.warmup = 0.5, 0
    train(ema_cfg, resume=True)
    assert "holds no averaged weights: the average begins with the weights of iteration 4" in capsys.readouterr().out
    final = read(ema_cfg)
    for name, average in final["ema"].items():
        # The mean of two numbers; torch rounds twice.
        torch.testing.assert_close(average, (at_four[name] + final["model"][name]) / 2, rtol=1e-6, atol=1e-8)


def test_switched_off_when_a_run_is_resumed_it_is_left_behind_and_training_is_the_same(ema_cfg, evaluated, capsys):
    train(ema_cfg, console="off")
    whole = read(ema_cfg)["model"]
    for name in ("model_final", "model_0000005"):
        (Path(ema_cfg.train.output_dir) / f"{name}.pth").unlink()
    ema_cfg.train.ema.enabled = False
    train(ema_cfg, resume=True)
    assert "holds averaged weights, which are left behind: train.ema is not enabled" in capsys.readouterr().out
    assert same(read(ema_cfg)["model"], whole) and "ema" not in read(ema_cfg)


def test_a_config_without_the_keys_trains_as_before(ema_cfg, evaluated):
    for key in ("ema", "use_ema_weights", "best_checkpoint", "early_stopping"):
        del ema_cfg.train[key]
    train(ema_cfg, console="off")
    assert not (Path(ema_cfg.train.output_dir) / "model_best.pth").exists()
    assert "ema" not in read(ema_cfg) and len(evaluated) == 3


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def file(tmp_path):
    """As a run with train.ema writes it: weights of 1 and averages of 2."""
    model = TinyDetector(num_classes=6)
    weights, averages = (
        {name: torch.full_like(t, value) for name, t in model.state_dict().items()} for value in (1, 2)
    )
    torch.save({"model": weights, "ema": averages, "iteration": 5}, tmp_path / "both.pth")
    return str(tmp_path / "both.pth")


def value_of(model):
    (value,) = {float(tensor.mean()) for tensor in model.state_dict().values()}
    return value


@pytest.mark.parametrize("purpose", ["train", "partial", "evaluate"])
def test_averages_are_taken_unless_asked_otherwise(file, purpose, caplog):
    model = TinyDetector(num_classes=6)
    with caplog.at_level("INFO", logger="dinox"):
        load_weights(model, file, purpose=purpose)
    assert value_of(model) == 2 and f"{file}: taking the averaged weights (it holds both)" in caplog.messages
    caplog.clear()
    with caplog.at_level("INFO", logger="dinox"):
        load_weights(model, file, purpose=purpose, ema=False)
    assert value_of(model) == 1 and "taking the weights of the last step, not the averaged ones" in caplog.text


def test_a_run_is_resumed_with_its_own_weights_and_detectron2_sees_them_too(file):
    for make in (Checkpointer, DetectionCheckpointer):
        model = TinyDetector(num_classes=6)
        make(model).load(file, **({"purpose": "resume"} if make is Checkpointer else {}))
        assert value_of(model) == 1


def test_what_other_programs_call_ema_is_not_taken_for_ours(tmp_path, caplog):
    model = TinyDetector(num_classes=6)
    weights = {name: torch.full_like(tensor, 1) for name, tensor in model.state_dict().items()}
    torch.save({"model": weights, "ema": {"module": weights, "updates": 3}}, tmp_path / "other.pth")
    load_weights(model, str(tmp_path / "other.pth"))
    assert value_of(model) == 1 and "averaged" not in caplog.text


def test_averages_of_another_model_are_not_resumed():
    average, _ = make_average(Line())
    with pytest.raises(CheckpointError, match=r"expected 'weight' of the shape \(2,\), got \(3,\)\. Resume with"):
        AveragedState(average).load_state_dict({"weight": torch.zeros(3), "mean": torch.zeros(2)})


def test_evaluation_and_fine_tuning_follow_the_config(file, tmp_path, monkeypatch):
    cfg = load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}", f"train.init_checkpoint={file}"])
    monkeypatch.setattr("dinox.engine.training._prepare_evaluation", lambda cfg: lambda model: {"x": value_of(model)})
    monkeypatch.setattr("dinox.engine.Trainer.run_step", lambda self: None)
    for ema, value in ((True, 2), (False, 1)):
        cfg.train.use_ema_weights, cfg.train.output_dir = ema, str(tmp_path / f"run{value}")
        assert evaluate(cfg, console="off") == {"x": value}
        cfg.train.max_iter = 1
        train(cfg, console="off")
        assert {float(tensor.mean()) for tensor in read(cfg)["model"].values()} == {value}


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "setting, message",
    [
        ("train.ema={decay: 1.0}", r"train\.ema\.decay: expected a number from 0 to below 1.*got 1\.0"),
        ("train.ema={decay: high}", r"train\.ema\.decay: expected a number, got 'high'"),
        ("train.ema={warmup: 0.5}", r"train\.ema\.warmup: expected a whole number, got 0\.5"),
        ("train.ema={warmup: -1}", r"train\.ema\.warmup: expected a whole number of steps"),
        ("train.ema={enabled: 1}", r"train\.ema\.enabled: expected true or false, got 1"),
        ("train.ema={decai: 0.9}", r"train\.ema\.decai: there is no such setting\. Did you mean 'decay'\?"),
        ("train.ema=true", r"train\.ema: expected settings such as \{enabled: true\}, got True"),
        ("train.use_ema_weights=maybe", r"train\.use_ema_weights: expected true or false, got 'maybe'"),
        ("train.best_checkpoint={mode: up}", r"train\.best_checkpoint\.mode: expected one of max, min, got 'up'"),
        ("train.best_checkpoint={metric: ''}", r"train\.best_checkpoint\.metric: expected the name of a metric"),
        ("train.early_stopping={patience: 0}", r"train\.early_stopping\.patience: expected a whole number of eval"),
        ("train.early_stopping={min_delta: -1}", r"train\.early_stopping\.min_delta: expected a number of at least 0"),
        ("train.early_stopping={metric: 5}", r"train\.early_stopping\.metric: expected text, got 5"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(tmp_path, setting, message):
    cfg = load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}"])
    key, _, value = setting.partition("=")
    OmegaConf.update(cfg, key, OmegaConf.create(f"x: {value}").x, merge=True)
    with pytest.raises(ValueError, match=message):
        train(cfg, console="off")
    assert not (tmp_path / "run").exists()
