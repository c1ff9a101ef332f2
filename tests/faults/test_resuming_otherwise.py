"""Resuming a run in other circumstances, row 36: what is allowed is told as a table, all else is an error.

Other batches, and checkpoints without the state of a run: ``tests/engine/test_resuming.py``.
"""

import os

import pytest
import torch

from dinox.cli.running import USER_ERROR
from dinox.data import register_shapes
from tests.engine.conftest import TINY_CONFIG
from tests.faults.test_checkpoints import assert_one_line

FEW = ["train.max_iter=2", "train.checkpointer.period=2", "train.eval_period=0", "train.matching_metrics.enabled=False"]


@pytest.fixture
def run_dir(dinox, tmp_path, forget_datasets):
    """Of a run of two steps."""
    code, _, err = train(dinox, tmp_path / "run")
    assert code == 0, err
    return tmp_path / "run"


def train(dinox, folder, *overrides, resume=False):
    flags = ["--resume"] if resume else []
    return dinox("train", "--config-file", TINY_CONFIG, *flags, f"train.output_dir={folder}", *FEW, *overrides)


def table_of(folder):
    """Rows of the last table of settings in the log."""
    lines = [line.split() for line in (folder / "log.txt").read_text().splitlines()]
    start = max(i for i, line in enumerate(lines) if line == ["setting", "checkpoint", "now"])
    return lines[start + 1 :]


def edit(file, change):
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def test_row_36_more_iterations_are_allowed_and_told(dinox, run_dir):
    code, _, err = train(dinox, run_dir, "train.max_iter=3", resume=True)
    assert code == 0, err
    assert ["train.max_iter", "2", "3"] in table_of(run_dir)
    assert torch.load(run_dir / "model_final.pth", weights_only=True)["iteration"] == 2


def test_row_36_fewer_iterations_than_were_done_are_an_error(dinox, run_dir):
    code, _, err = train(dinox, run_dir, "train.max_iter=1", resume=True)
    assert code == USER_ERROR
    assert_one_line(err, "model_final.pth is at iteration 2, beyond train.max_iter=1", "raise that")


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lr=0.5", "lr is 0.5 in the config and 0.0001 in the checkpoint"),
        ("optimizer.weight_decay=0.5", "weight_decay is 0.5 in the config and 0.0001 in the checkpoint"),
    ],
)
def test_row_36_another_lr_or_weight_decay_is_an_error(dinox, run_dir, override, message):
    """The optimizer's state would bring the old ones back, in silence."""
    before = {file.name: file.read_bytes() for file in run_dir.glob("*.pth")}
    code, _, err = train(dinox, run_dir, "train.max_iter=3", override, resume=True)
    assert code == USER_ERROR
    assert_one_line(err, message, "start another one from its weights")
    assert {file.name: file.read_bytes() for file in run_dir.glob("*.pth")} == before


def test_row_36_another_number_of_processes_is_allowed_and_told(dinox, run_dir):
    def as_of_two(content):
        ranks = content["trainer"]["hooks"]["RunCheckpoints"]["ranks"]
        ranks.append(ranks[0])

    edit(run_dir / "model_final.pth", as_of_two)
    code, _, err = train(dinox, run_dir, "train.max_iter=3", resume=True)
    assert code == 0, err
    assert ["number", "of", "processes", "2", "1"] in table_of(run_dir)
    assert "Random numbers are seeded anew from (seed 1, iteration, rank)" in (run_dir / "log.txt").read_text()


def test_row_36_other_images_of_the_same_classes_are_allowed_and_told(dinox, run_dir):
    root = os.environ["DINOX_TEST_DATASETS"]
    register_shapes("dinox_more_images", seed=300, num_images=12, size=96, root=root)
    name = "dataloader.train.dataset.names"
    code, _, err = train(dinox, run_dir, "train.max_iter=3", f"{name}=dinox_more_images", resume=True)
    assert code == 0, err
    assert [name, "dinox_tiny_train", "dinox_more_images"] in table_of(run_dir)
    assert "the training data had 8 images and has 12" in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize("how", ["another order", "other classes"])
def test_row_36_data_of_other_classes_is_an_error(dinox, run_dir, how):
    """As many of them: shapes do not tell."""
    before = ["disk", "ring", "square", "triangle", "star", "cross"]
    trained_on = before[::-1] if how == "another order" else [*before[:5], "moon"]
    edit(run_dir / "model_final.pth", lambda content: content["dinox"].update(class_names=trained_on))
    code, _, err = train(dinox, run_dir, "train.max_iter=3", resume=True)
    assert code == USER_ERROR
    assert_one_line(
        err,
        "model_final.pth",
        f"the classes {', '.join(trained_on)} (6)",
        f"now has {', '.join(before)} (6)",
        "by name",
    )


def test_row_36_another_model_is_an_error(dinox, run_dir):
    code, _, err = train(dinox, run_dir, "train.max_iter=3", "model.embed_dim=16", resume=True)
    assert code == USER_ERROR
    assert_one_line(err, "model_final.pth is not of this model", "to resume takes all of them")
