"""The best checkpoint and an early end, by metrics that are scripted."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from dinox.analysis import find_checkpoints
from dinox.checkpoint import load_weights, read_description
from dinox.cli.running import guarded
from dinox.config import load_config
from dinox.engine import Trainer, TrainingStopped, train, training
from dinox.engine import evaluations as evaluations_module
from dinox.engine.evaluations import copies_of_weights
from dinox.engine.goals import BestValue
from dinox.engine.setup import check_space
from dinox.evaluation import CocoEvaluator, WithAndWithoutNMS
from dinox.evaluation.metric_names import known_metrics
from dinox.utils import whole_files
from tests.engine.conftest import TINY_CONFIG
from tests.engine.test_resuming import assert_same
from tests.engine.tiny import TinyDetector
from tests.modeling.test_distributed import TIME_LIMIT, free_port

NAN = float("nan")


@pytest.fixture
def cfg(tmp_path):
    """Ten steps, with a checkpoint and an evaluation after every second one; averages are evaluated."""
    overrides = ["train.max_iter=10", "train.eval_period=2", "train.checkpointer.period=2", "optimizer.lr=0.01"]
    ema = "train.ema={enabled: true, decay: 0.9, warmup: 3}"
    return load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}", *overrides, ema])


class Script:
    """metric(evaluation) = values[evaluation], by the iteration, so that a resumed run gets the same. calls: iterations
    done when an evaluation was made."""

    def __init__(self, values, metric="bbox/AP"):
        self.values, self.metric, self.calls = values, metric, []

    def __call__(self, model):
        done = min(get_event_storage().iter + 1, 2 * len(self.values))
        self.calls.append(done)
        return {self.metric: np.float64(self.values[done // 2 - 1]), "bbox/AP50": 50.0}


@pytest.fixture
def scripted(monkeypatch):
    def plan(*values, **options):
        script = Script(values, **options)
        monkeypatch.setattr("dinox.engine.training._prepare_evaluation", lambda cfg: script)
        return script

    return plan


def path(cfg, name):
    return Path(cfg.train.output_dir) / name


def read(cfg, name):
    return torch.load(path(cfg, f"{name}.pth"), weights_only=True)


def stop_early(cfg, patience, **options):
    cfg.train.early_stopping.update(enabled=True, patience=patience, **options)
    return cfg


# ------------------------------------------------------------------------------------------------------ best checkpoint


@pytest.mark.parametrize(
    "mode, values, best",
    [
        ("max", (1.0, 3.0, 2.0, 3.0, 1.0), 4),  # no worse is not better
        ("min", (3.0, 2.0, 1.0, 4.0, 5.0), 6),
        ("max", (NAN, 1.0, NAN, math.inf, 0.0), 4),
        ("max", (1.0, 2.0, 3.0, 4.0, 5.0), 10),  # the last evaluation counts too
    ],
)
def test_the_weights_with_the_best_metric_are_kept(cfg, scripted, mode, values, best):
    scripted(*values)
    cfg.train.best_checkpoint.mode = mode
    train(cfg, console="off")
    kept = read(cfg, "model_best")
    value = values[best // 2 - 1]
    assert kept["best"] == {"metric": "bbox/AP", "mode": mode, "value": value, "iterations": best}
    assert kept["iteration"] == best - 1
    assert kept.keys() == {"model", "dinox", "iteration", "best"}
    assert_same(kept["model"], read(cfg, f"model_{best - 1:07d}")["ema"])
    assert path(cfg, "last_checkpoint").read_text() == "model_final.pth"


def test_no_value_is_better_than_none_if_it_is_not_finite(cfg, scripted):
    scripted(*[NAN] * 5)
    train(cfg, console="off")
    assert not path(cfg, "model_best.pth").exists()


def test_the_best_checkpoint_is_used_as_any_other_and_is_no_step_of_a_run(cfg, scripted):
    scripted(1.0, 2.0, 1.0, 1.0, 1.0)
    train(cfg, console="off")
    best = str(path(cfg, "model_best.pth"))
    assert load_weights(TinyDetector(num_classes=6), best, purpose="evaluate").is_complete
    assert read_description(best).class_names is not None and "TinyDetector" in read_description(best).config_yaml
    assert best not in [each.path for each in find_checkpoints([cfg.train.output_dir])]


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_does_not_replace_the_best_checkpoint_of_another(cfg, scripted, resume):
    scripted(*range(5))
    path(cfg, "").mkdir()
    path(cfg, "model_best.pth").write_bytes(b"dear to somebody")
    with pytest.raises(ValueError, match=r"holds model_best.pth only, .* start from it with train.init_checkpoint="):
        train(cfg, resume=resume, console="off")
    assert path(cfg, "model_best.pth").read_bytes() == b"dear to somebody"


def test_a_resumed_run_knows_what_was_best(cfg, scripted):
    cfg.train.max_iter = 6
    scripted(1.0, 5.0, 2.0, 3.0, 6.0)
    train(cfg, console="off")
    before = path(cfg, "model_best.pth").stat().st_mtime_ns
    cfg.train.max_iter = 8
    train(cfg, resume=True, console="off")
    assert path(cfg, "model_best.pth").stat().st_mtime_ns == before
    cfg.train.max_iter = 10
    train(cfg, resume=True, console="off")
    assert read(cfg, "model_best")["best"]["value"] == 6.0


def test_another_metric_after_resuming_begins_anew_and_says_so(cfg, scripted, capsys):
    cfg.train.max_iter = 6
    scripted(60.0, 70.0, 80.0, 90.0, 90.0)
    train(cfg, console="off")
    cfg.train.max_iter, cfg.train.best_checkpoint.metric = 10, "bbox/AP50"
    train(cfg, resume=True)
    assert "train.best_checkpoint: the run went by bbox/AP (max) before" in capsys.readouterr().out
    assert read(cfg, "model_best")["best"]["metric"] == "bbox/AP50"


def test_a_full_disk_leaves_the_former_best_and_is_told(cfg, scripted, monkeypatch, capsys):
    scripted(1.0, 2.0, 3.0, 2.5, 2.5)
    flush, calls = whole_files._flush_to_disk, []

    def no_space(file):
        if file.name.startswith(".model_best"):
            calls.append(file)
            if len(calls) in (2, 3):
                raise OSError(28, "No space left on device")
        flush(file)

    monkeypatch.setattr(whole_files, "_flush_to_disk", no_space)
    train(cfg)
    out = capsys.readouterr().out
    assert out.count("NO model_best.pth WRITTEN, though bbox/AP is the best so far") == 2
    assert "No space left on device" in out
    assert read(cfg, "model_best")["best"]["value"] == 2.5  # better than what is there


def test_metrics_that_evaluation_will_not_give_are_told_before_the_first_step(cfg):
    cfg.train.best_checkpoint.metric = "bbox/AP5O"
    with pytest.raises(
        ValueError, match=r"train\.best_checkpoint\.metric: .* no 'bbox/AP5O'\. Did you mean .*'bbox/AP50'"
    ):
        train(cfg, console="off")
    cfg.train.best_checkpoint.metric = "bbox/AP-star"  # of a class
    stop_early(cfg, 2, metric="AP")
    with pytest.raises(ValueError, match=r"train\.early_stopping\.metric: .* no 'AP'.* There are bbox/AP, "):
        train(cfg, console="off")
    assert not path(cfg, "").exists()


def test_the_metrics_of_evaluators_that_are_known():
    plain = CocoEvaluator("dinox_tiny_val", tasks=("segm",))
    assert known_metrics(plain).has("segm/AP") and not known_metrics(plain).has("bbox/AP")
    assert known_metrics([plain]).has("segm/AP-star") and known_metrics(plain).has("detections/count")
    assert known_metrics(WithAndWithoutNMS(evaluator=plain)).has("segm/AP50_wonms")
    assert known_metrics(DatasetEvaluator()) is None and known_metrics([plain, DatasetEvaluator()]) is None


@pytest.mark.parametrize("goal", ["best_checkpoint", "early_stopping"])
def test_other_unknown_metrics_are_told_after_the_first_evaluation(cfg, scripted, goal):
    scripted(*[1.0] * 5)
    cfg.train[goal].update(enabled=True, metric="bbox/AR")
    with pytest.raises(ValueError, match=rf"train\.{goal}\.metric: .* 'bbox/AR'.* There are bbox/AP, bbox/AP50\. Take"):
        train(cfg, console="off")
    assert path(cfg, "model_0000001.pth").exists() and not path(cfg, "model_0000003.pth").exists()


def test_an_evaluator_without_the_metric_that_nobody_asked_for_ends_no_run(cfg, scripted, capsys):
    scripted(*[1.0] * 5, metric="accuracy")
    assert train(cfg)["accuracy"] == 1.0
    assert (
        "NO model_best.pth WRITTEN: train.best_checkpoint.metric: evaluation gives no 'bbox/AP'"
        in capsys.readouterr().out
    )
    assert not path(cfg, "model_best.pth").exists()


def test_the_space_that_is_looked_for_counts_the_average_and_the_best_checkpoint(cfg, monkeypatch, tmp_path):
    model = nn.Linear(999, 1)  # 4,000 bytes, 12,000 with Adam's two averages
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=12_000 + 2 * 4_000))
    check_space(tmp_path, model, copies=copies_of_weights(cfg))
    with pytest.raises(ValueError, match="with the weights written beside it takes about"):
        check_space(tmp_path, model, copies=copies_of_weights(cfg) + 1)
    cfg.train.ema.enabled = cfg.train.best_checkpoint.enabled = False
    assert copies_of_weights(cfg) == 0


# ------------------------------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    "values, options, ended",
    [
        ((5.0, 4.0, 4.0, 9.0, 9.0), {"patience": 2}, 6),
        ((5.0, 4.0, 6.0, 5.0, 9.0), {"patience": 2}, 10),  # the third was better
        ((5.0, 5.5, 6.0, 6.5, 9.0), {"patience": 2, "min_delta": 0.6}, 10),  # 6.0 is better than 5.0 by enough
        ((5.0, 5.5, 5.6, 6.5, 9.0), {"patience": 2, "min_delta": 0.6}, 6),
        ((NAN, NAN, NAN, 5.0, 5.0), {"patience": 2}, 4),
        ((5.0, 4.0, 5.0, 4.0, 3.0), {"patience": 1, "mode": "min"}, 6),
    ],
)
def test_training_ends_when_a_metric_does_not_improve(cfg, scripted, capsys, values, options, ended):
    scripted(*values)
    results = train(stop_early(cfg, **options))
    assert results["bbox/AP"] == pytest.approx(values[ended // 2 - 1], nan_ok=True)
    final = read(cfg, "model_final")
    assert final["iteration"] == ended - 1 and path(cfg, "last_checkpoint").read_text() == "model_final.pth"
    assert path(cfg, f"model_{ended - 1:07d}.pth").exists()
    out = capsys.readouterr().out
    assert (f"Training ends after {ended} iterations: bbox/AP has not improved in {options['patience']}" in out) == (
        ended < 10
    )
    assert ended == 10 or " left" not in out[out.index("Training ends") :]
    last = json.loads(path(cfg, "metrics.json").read_text().splitlines()[-1])
    assert "bbox/AP" in last and last["iteration"] in (ended - 1, ended)


def test_an_early_end_is_no_error_and_keeps_as_many_checkpoints(cfg, scripted):
    scripted(5.0, 4.0, 4.0, 9.0, 9.0)
    cfg.train.checkpointer.max_to_keep = 2
    assert guarded(lambda: train(stop_early(cfg, 2), console="off") and None) == 0
    files = sorted(file.name for file in path(cfg, "").glob("*.pth"))
    assert files == ["model_0000003.pth", "model_0000005.pth", "model_best.pth", "model_final.pth"]


def test_what_ended_early_does_nothing_more_when_it_is_resumed(cfg, scripted, capsys):
    script = scripted(5.0, 4.0, 4.0, 9.0, 10.0)
    first = train(stop_early(cfg, 2), console="off")
    before = {file: file.stat().st_mtime_ns for file in path(cfg, "").iterdir()}
    assert train(cfg, resume=True) == first
    assert (
        "Nothing to do, the run ended early: bbox/AP has not improved in 2 evaluations (best: bbox/AP 5.0000, after 2 "
        in capsys.readouterr().out
    )
    assert {file: file.stat().st_mtime_ns for file in path(cfg, "").iterdir()} == before
    assert script.calls == [2, 4, 6]
    # Unless it is asked for more.
    assert train(stop_early(cfg, 3), resume=True, console="off")["bbox/AP"] == 10.0
    assert script.calls == [2, 4, 6, 8, 10]


def test_going_on_after_an_early_end_is_the_run_without_one(cfg, scripted, tmp_path):
    scripted(5.0, 4.0, 4.0, 9.0, 10.0)
    train(stop_early(cfg, 2), console="off")
    cfg.train.early_stopping.enabled = False
    train(cfg, resume=True, console="off")
    one = read(cfg, "model_final")
    cfg.train.output_dir = str(tmp_path / "whole")
    train(cfg, console="off")
    assert_same(one, read(cfg, "model_final"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"train.eval_period": 0}, r"with train\.eval_period=0 there is no evaluation before the end"),
        ({"dataloader.evaluator": None}, r"the config has no dataloader\.evaluator"),
    ],
)
def test_a_metric_that_nobody_measures_is_a_mistake(cfg, overrides, message):
    stop_early(cfg, 2)
    for key, value in overrides.items():
        node, _, name = key.rpartition(".")
        cfg[node][name] = value
    with pytest.raises(ValueError, match=message):
        train(cfg, console="off")


# ------------------------------------------------------------------------------------------------------------- resuming


class Killed(Exception):
    pass


def killed_in(monkeypatch, place, iteration):
    """In the evaluation after the iteration's step, or in the step behind that."""
    owner, name = (evaluations_module.Evaluations, "_judge") if place == "evaluation" else (Trainer, "run_step")
    original = getattr(owner, name)

    def call(self, *args):
        trainer = self if place == "step" else self.trainer
        if trainer.iter == (iteration + 1 if place == "step" else iteration):
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place, evaluations", [("evaluation", [2, 4, 4, 6, 8]), ("step", [2, 4, 6, 8])])
def test_killed_between_a_checkpoint_and_the_next_it_goes_on_as_if_nothing_had_been(
    cfg, scripted, monkeypatch, tmp_path, place, evaluations, workers
):
    """What came of the second evaluation is in no checkpoint yet. The fourth one ends the run."""
    script = scripted(3.0, 5.0, 4.0, 4.0, 9.0)
    stop_early(cfg, 2).dataloader.train.num_workers = workers
    train(cfg, console="off")
    whole, script.calls[:] = {name: read(cfg, name) for name in ("model_final", "model_best")}, []
    cfg.train.output_dir = str(tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, place, 3)
        train(cfg, console="off")
    train(cfg, resume=True, console="off")
    assert script.calls == evaluations
    for name, content in whole.items():
        assert_same(read(cfg, name), content)


@pytest.mark.parametrize("place", ["evaluation", "step"])
def test_killed_in_the_evaluation_that_ends_the_run_it_ends_the_same(cfg, scripted, monkeypatch, tmp_path, place):
    scripted(3.0, 2.0, 1.0, 4.0, 9.0)
    train(stop_early(cfg, 2), console="off")
    whole = read(cfg, "model_final")
    cfg.train.output_dir = str(tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if place == "step":
            patch.setattr(evaluations_module.Evaluations, "_end_if_given_up", lambda self: None)
        killed_in(patch, place, 5)
        train(cfg, console="off")
    train(cfg, resume=True, console="off")
    assert_same(read(cfg, "model_final"), whole)


def test_the_record_of_a_later_evaluation_than_the_checkpoint_is_not_taken(cfg, scripted):
    script = scripted(3.0, 2.0, 1.0, 4.0, 9.0)
    train(cfg, console="off")
    script.calls.clear()
    path(cfg, "last_checkpoint").write_text("model_0000003.pth")
    shutil.copy(path(cfg, "last_evaluation"), path(cfg, "copy"))
    train(cfg, resume=True, console="off")
    assert script.calls == [4, 6, 8, 10]
    path(cfg, "last_evaluation").write_text("{")
    path(cfg, "last_checkpoint").write_text("model_0000003.pth")
    train(cfg, resume=True, console="off")
    assert script.calls[4:] == [4, 6, 8, 10]


@pytest.mark.parametrize("place, evaluations", [("evaluation", [2, 4, 4, 6, 8, 10]), ("step", [2, 4, 6, 8, 10])])
def test_an_evaluation_that_was_cut_off_is_made_up_for_whatever_it_is_for(
    cfg, scripted, monkeypatch, place, evaluations
):
    script = scripted(3.0, 5.0, 4.0, 4.0, 9.0)
    cfg.train.best_checkpoint.enabled = False
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, place, 3)
        train(cfg, console="off")
    train(cfg, resume=True, console="off")
    assert script.calls == evaluations
    lines = [json.loads(line) for line in path(cfg, "metrics.json").read_text().splitlines()]
    assert {line["iteration"]: line["bbox/AP"] for line in lines if "bbox/AP" in line} == {
        1: 3.0,
        3: 5.0,
        5: 4.0,
        7: 4.0,
        10: 9.0,
    }


def test_nothing_is_made_up_for_if_no_evaluations_are_wanted_any_more(cfg, scripted, monkeypatch):
    script = scripted(3.0, 5.0, 4.0, 4.0, 9.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, "evaluation", 3)
        train(cfg, console="off")
    cfg.train.eval_period = 0
    train(cfg, resume=True, console="off")
    assert script.calls == [2, 4, 10]


# -------------------------------------------------------------------------------------------------- with other batches


@pytest.fixture
def by_turns(monkeypatch):
    """by_turns(values): the metric, one evaluation after the other. -> iterations done at each of them"""

    def plan(*values):
        calls = []

        def evaluate(model):
            calls.append(get_event_storage().iter + 1)
            return {"bbox/AP": values[len(calls) - 1]}

        monkeypatch.setattr("dinox.engine.training._prepare_evaluation", lambda cfg: evaluate)
        return calls

    return plan


@pytest.mark.parametrize("place", ["evaluation", "step"])
def test_with_batches_of_twice_as_many_images_no_evaluation_is_left_out(cfg, by_turns, monkeypatch, place):
    """Four iterations count as two, after which the checkpoint was evaluated as well, once."""
    calls = by_turns(5.0, 9.0, *([9.0] if place == "evaluation" else []), 6.0, 6.0, 6.0, 6.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, place, 3)
        train(cfg, console="off")
    cfg.dataloader.train.total_batch_size *= 2
    train(cfg, resume=True, console="off")
    assert calls == [2, 4, *([2] if place == "evaluation" else []), 4, 6, 8, 11]
    assert read(cfg, "model_best")["best"]["value"] == 9.0


@pytest.mark.parametrize("eval_period, evaluations", [(2, [2, 6, 8, 11]), (4, [8, 11])])
def test_with_batches_of_half_as_many_images_no_evaluation_is_added(
    cfg, by_turns, monkeypatch, eval_period, evaluations
):
    """Two iterations count as four. The checkpoint was evaluated already, or it is not one that was to be."""
    calls = by_turns(5.0, 4.0, 3.0, 2.0)
    stop_early(cfg, 3).train.eval_period = eval_period
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, "step", 1)
        train(cfg, console="off")
    cfg.dataloader.train.total_batch_size //= 2
    train(cfg, resume=True, console="off")
    assert calls == evaluations


def test_the_evaluation_at_the_end_counts_when_the_run_is_made_longer(cfg, by_turns):
    """It was due to no period."""
    cfg.train.max_iter = 5
    calls = by_turns(5.0, 4.0, 9.0, 6.0, 6.0, 6.0)
    train(cfg, console="off")
    cfg.train.max_iter = 10
    train(cfg, resume=True, console="off")
    assert calls == [2, 4, 6, 6, 8, 11]  # the storage counts the end of a run as one more
    assert read(cfg, "model_best")["best"]["value"] == 9.0


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt])
def test_a_run_whose_last_step_fails_is_not_evaluated(cfg, scripted, monkeypatch, error):
    script, run_step = scripted(*range(5)), Trainer.run_step

    def step(self):
        if self.iter == 9:
            raise error
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", step)
    with pytest.raises(error):
        train(cfg, console="off")
    assert script.calls == [2, 4, 6, 8]
    assert read(cfg, "model_best")["best"]["iterations"] == 8
    assert json.loads(path(cfg, "last_evaluation").read_text())["iterations"] == 8


def test_a_finished_run_that_cannot_begin_again_is_not_evaluated(cfg, scripted, monkeypatch):
    script = scripted(*range(5))
    train(cfg, console="off")

    def fail(self):
        raise Killed

    monkeypatch.setattr(hooks.PeriodicWriter, "before_train", fail)
    with pytest.raises(Killed):
        train(cfg, resume=True, console="off")
    assert script.calls == [2, 4, 6, 8, 10]


def test_a_signal_in_the_last_step_leaves_the_evaluation_to_whoever_resumes(cfg, scripted, monkeypatch):
    script, run_step = scripted(*range(5)), Trainer.run_step

    def step(self):
        if self.iter == 9:
            signal.raise_signal(signal.SIGTERM)
        run_step(self)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        patch.setattr(Trainer, "run_step", step)
        train(cfg, console="off")
    assert script.calls == [2, 4, 6, 8] and path(cfg, "model_final.pth").exists()
    assert train(cfg, resume=True, console="off")["bbox/AP"] == 4.0
    assert read(cfg, "model_best")["best"]["iterations"] == 10


def test_without_an_evaluator_nothing_is_said_of_evaluating(cfg, capsys):
    del cfg.dataloader["evaluator"]
    assert train(cfg) == {}
    assert "Evaluating" not in capsys.readouterr().out
    assert not path(cfg, "last_evaluation").exists()


def test_the_best_value_so_far_by_hand():
    best = BestValue(setting="train.early_stopping", metric="AP", mode="max", min_delta=0.5)
    assert [best.update(value, i) for i, value in enumerate((NAN, 1.0, 1.5, 1.6, 1.7))] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert (best.value, best.iterations, best.waited) == (1.6, 3, 1)
    other = BestValue(setting="train.early_stopping", metric="AP", mode="max", min_delta=0.5)
    other.load_state_dict(best.state_dict())
    assert other.state_dict() == best.state_dict()


# ------------------------------------------------------------------------------------------------------------ two ranks


def train_on_a_rank(rank, port, cfg, resume):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    script = Script((3.0, 5.0, 4.0, 4.0, 9.0))
    training._prepare_evaluation = lambda cfg: lambda model: script(model) if rank == 0 else {}
    results = train(cfg, resume=resume, console="off")
    path(cfg, f"results.{rank}").write_text(json.dumps(results))


@pytest.mark.timeout(TIME_LIMIT)
def test_two_ranks_end_together(cfg):
    stop_early(cfg, 2)
    for resume in (False, True):
        mp.start_processes(train_on_a_rank, (free_port(), cfg, resume), nprocs=2, start_method="fork")
        assert read(cfg, "model_final")["iteration"] == 7
        assert read(cfg, "model_best")["best"]["iterations"] == 4
        assert json.loads(path(cfg, "results.0").read_text())["bbox/AP"] == 4.0
        assert json.loads(path(cfg, "results.1").read_text()) == {}
        os.remove(path(cfg, "results.1"))
    assert read(cfg, "model_final")["trainer"]["hooks"]["WeightAverage"] == {"steps": 8}
