import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dinox.cli.running import DEBUG_VARIABLE
from tests.cli.conftest import TINY_CONFIG
from tests.engine.tiny import TinyDetector

ROOT = Path(__file__).parents[2]
TRAIN_NET = str(ROOT / "projects" / "train_net.py")


def is_one_line(err):
    return err.startswith("dinox: error: ") and err.count("\n") == 1


def test_train_then_eval(dinox, output_dir, tmp_path):
    overrides = [f"train.output_dir={output_dir}", "train.max_iter=2"]
    code, out, _ = dinox("train", "--config-file", TINY_CONFIG, *overrides, "--json", tmp_path / "train.json")
    assert code == 0
    assert "iteration 2/2" in out
    trained = json.loads((tmp_path / "train.json").read_text())
    assert trained["command"] == "train"
    assert trained["output_dir"] == str(output_dir)

    weights = f"train.init_checkpoint={output_dir / 'model_final.pth'}"
    elsewhere = f"train.output_dir={tmp_path / 'eval'}"
    code, _, _ = dinox("eval", "--config-file", TINY_CONFIG, "--json", tmp_path / "eval.json", weights, elsewhere)
    assert code == 0
    evaluated = json.loads((tmp_path / "eval.json").read_text())
    assert evaluated["results"] == trained["results"]
    assert 0 <= evaluated["results"]["bbox/AP50"] <= 100


@pytest.mark.parametrize(
    "override, messages",
    [
        ("optimizer.lrr=1", ["optimizer.lrr", "Did you mean", "optimizer.lr"]),
        ("model.num_classes=8", ["model.num_classes is 8", "6 classes"]),
        (
            "dataloader.train.dataset.names=dinox_tiny_trian",
            ["'dinox_tiny_trian' is not registered", "dinox_tiny_train"],
        ),
        ("train.init_checkpoint=nowhere.pth", ["nowhere.pth: no such file"]),
        ("schedule.epochs=0", ["epochs"]),
        ("train.max_iter=0", ["train.max_iter: expected a whole number of at least 1, got 0"]),
        (
            "train.amp.max_skips_in_a_row=0",
            ["train.amp.max_skips_in_a_row: expected a whole number of at least 1", ", got 0"],
        ),
        ("train.activation_checkpointing=[encodr]", ["train.activation_checkpointing", "Did you mean 'encoder'"]),
        ("train.activation_checkpointing=[encoder]", ["this model has no part 'encoder': it has backbone, box_head"]),
        ("train.compile.parts=[encodr]", ["train.compile.parts", "Did you mean 'encoder'"]),
        ("train.compile.enabled=true", ["train.compile.parts: this model has no part 'encoder'"]),
        ("train.deterministic=2", ["train.deterministic", "expected true/false, got 2"]),
        ("dataloader.test.dataset.names=[dinox_tiny_val]", ["Give one name, dataloader.test.dataset.names=dinox_tin"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(dinox, output_dir, tmp_path, override, messages):
    json_file = tmp_path / "results.json"
    code, _, err = dinox(
        "train", "--config-file", TINY_CONFIG, "--json", json_file, override, f"train.output_dir={output_dir}"
    )
    assert code == 2
    assert is_one_line(err)
    assert all(message in err for message in messages), err
    assert not output_dir.exists()
    assert not json_file.exists()


def test_a_checkpoint_of_another_architecture_is_one_line(dinox, output_dir, tmp_path):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    weights = f"train.init_checkpoint={tmp_path / 'other.pth'}"
    code, _, err = dinox("train", "--config-file", TINY_CONFIG, weights, f"train.output_dir={output_dir}")
    assert code == 2
    assert is_one_line(err)
    assert "other.pth is not of this model: 0 of the model's 8 tensors loaded" in err
    assert not output_dir.exists()


def test_training_that_diverges_is_one_line_with_iteration_term_and_images(dinox, output_dir, monkeypatch):
    losses = iter([0.5, float("nan")])
    monkeypatch.setattr(TinyDetector, "_losses", lambda self, boxes, *_: {"loss_class": boxes.sum() * next(losses)})
    overrides = [f"train.output_dir={output_dir}", "train.checkpointer.period=1", "train.eval_period=0"]
    code, _, err = dinox("train", "--config-file", TINY_CONFIG, *overrides)
    assert code == 2
    assert is_one_line(err)
    assert "non-finite loss at iteration 1: loss_class = nan" in err
    assert ".jpg" in err
    assert "FloatingPointError" in (output_dir / "log.txt").read_text()
    assert (output_dir / "model_0000000.pth").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_an_explicit_gpu_has_to_be_there(dinox, output_dir):
    arguments = ["train", "--config-file", TINY_CONFIG, f"train.output_dir={output_dir}"]
    code, _, err = dinox(*arguments, "train.device=cuda")
    assert code == 2
    assert "train.device=cuda: torch" in err
    code, _, err = dinox(*arguments, "--num-gpus", "2")
    assert code == 2
    assert "--num-gpus 2: torch finds 0 CUDA devices" in err
    assert not output_dir.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num-gpus", "-1"], "--num-gpus: expected at least 0, got -1"),
        (["--num-gpus", "0", "train.device=cuda"], "--num-gpus 0 asks for the CPU, but train.device=cuda"),
        (["--num-machines", "0"], "--num-machines: expected at least 1, got 0"),
        (["--num-machines", "2"], "--num-machines 2: give the same --dist-url tcp://HOST:PORT on all of them"),
        (["--num-machines", "2", "--num-gpus", "0"], "--num-gpus: expected at least 1 on each machine, got 0"),
        (["--machine-rank", "1"], "--machine-rank: expected 0 to 0 of 1, got 1"),
    ],
)
def test_a_wrong_number_of_processes_is_one_line(dinox, output_dir, arguments, message):
    code, _, err = dinox("train", "--config-file", TINY_CONFIG, *arguments, f"train.output_dir={output_dir}")
    assert code == 2
    assert is_one_line(err)
    assert message in err
    assert not output_dir.exists()


def test_a_finished_run_is_not_replaced_by_mistake(dinox, output_dir):
    arguments = ["train", "--config-file", TINY_CONFIG, "train.max_iter=1", f"train.output_dir={output_dir}"]
    assert dinox(*arguments)[0] == 0
    code, _, err = dinox(*arguments)
    assert code == 2
    assert is_one_line(err)
    assert "holds checkpoints of an earlier run: resume it (--resume)" in err
    assert dinox(*arguments, "--resume")[0] == 0


def test_a_config_that_is_not_there_gets_a_did_you_mean(dinox):
    code, _, err = dinox("train", "--config-file", "dino/dino_r50_4scale_12epp")
    assert code == 2
    assert "Did you mean 'dino/dino_r50_4scale_12ep'" in err


def test_results_need_a_folder_before_the_work_begins(dinox, output_dir, tmp_path):
    target = tmp_path / "missing" / "results.json"
    code, _, err = dinox("train", "--config-file", TINY_CONFIG, "--json", target, f"train.output_dir={output_dir}")
    assert code == 2
    assert "existing folder" in err
    assert not output_dir.exists()


def test_overrides_may_come_before_and_after_options(dinox, output_dir):
    arguments = ["train.max_iter=1", "--config-file", TINY_CONFIG, "--resume", f"train.output_dir={output_dir}"]
    code, out, _ = dinox("train", *arguments)
    assert code == 0
    assert "iteration 1/1" in out


@pytest.mark.parametrize("argv", [[], ["trian"], ["train"], ["train", "--config-file", "a", "--nonsense"]])
def test_a_wrong_command_line_is_code_2(dinox, argv):
    code, _, err = dinox(*argv)
    assert code == 2
    assert "usage: dinox" in err


def test_help_lists_the_commands(dinox):
    code, out, _ = dinox("--help")
    assert code == 0
    assert all(command in out for command in ("train", "eval", "demo"))


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_debugging_keeps_the_traceback(dinox, monkeypatch, way):
    arguments = ["train", "--config-file", TINY_CONFIG, "optimizer.lrr=1"]
    if way == "variable":
        monkeypatch.setenv(DEBUG_VARIABLE, "1")
    else:
        arguments.insert(1, "--debug")
    with pytest.raises(ValueError, match=r"optimizer\.lrr"):
        dinox(*arguments)


def test_deterministic_training_is_a_setting_of_the_config(dinox, output_dir):
    code, _, err = dinox(
        "train", "--config-file", TINY_CONFIG, "--deterministic", f"train.output_dir={output_dir}", "train.max_iter=1"
    )
    assert code == 0, err
    assert "deterministic: true" in (output_dir / "config.yaml").read_text()


@pytest.mark.parametrize("command", ["train", "eval"])
def test_both_commands_take_the_flag(command, dinox, monkeypatch):
    started = []
    monkeypatch.setattr(f"dinox.cli.{command}.start", lambda options: started.append(options) or 0)
    assert dinox(command, "--config-file", TINY_CONFIG, "--deterministic")[0] == 0
    assert started[0].deterministic and started[0].eval_only == (command == "eval")


@pytest.mark.parametrize("flags", [[], ["--deterministic"], ["--eval-only", "--deterministic"]])
def test_train_net_takes_the_flag_too(flags, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "projects"))
    import train_net

    started = []
    monkeypatch.setattr(train_net, "start", started.append)
    train_net.main(["--config-file", TINY_CONFIG, *flags])
    assert started[0].deterministic == ("--deterministic" in flags)


@pytest.fixture(scope="module")
def train_net_run(tmp_path_factory):
    """(exit code, stdout, stderr, output folder) of the script that detectron2 users expect, as a process."""
    folder = tmp_path_factory.mktemp("train_net") / "run"
    command = [
        sys.executable,
        TRAIN_NET,
        "--config-file",
        TINY_CONFIG,
        "train.max_iter=2",
        f"train.output_dir={folder}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr, folder


def test_train_net_trains(train_net_run):
    code, out, err, folder = train_net_run
    assert code == 0, err
    assert "iteration 2/2" in out
    assert (folder / "model_final.pth").is_file()


def test_train_net_evaluates_only(train_net_run, tmp_path, monkeypatch):
    *_, folder = train_net_run

    def files():  # the evaluator replaces those in its own folder
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}

    before = files()
    monkeypatch.syspath_prepend(str(ROOT / "projects"))
    import train_net

    results = tmp_path / "results.json"
    weights = [f"train.init_checkpoint={folder / 'model_final.pth'}", f"train.output_dir={folder}"]
    assert train_net.main(["--config-file", TINY_CONFIG, "--eval-only", "--json", str(results), *weights]) == 0
    assert json.loads(results.read_text())["command"] == "eval"
    assert files() == before
    assert train_net.main(["--config-file", TINY_CONFIG, "--eval-only", "train.max_iter=2", "--json"]) == 2
    assert train_net.main([]) == 2
