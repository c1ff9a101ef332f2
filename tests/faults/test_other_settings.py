"""A run that is resumed with other settings: row 36. Of batch sizes and ranks: tests/engine/test_resuming.py."""

import pytest

from .own_data import change_json, write_dataset


@pytest.fixture
def run(dinox, tmp_path, output_dir, forget_datasets):
    """Three steps, then `resume(overrides)` -> (exit code, stdout, stderr)."""
    config = write_dataset(tmp_path)
    settings = ["--config-file", config, f"train.output_dir={output_dir}", "train.eval_period=0"]
    code, _, err = dinox("train", *settings, "train.max_iter=3")
    assert code == 0, err
    return lambda *overrides: dinox("train", *settings, "--resume", *overrides)


def is_told(out, *row):
    """In the table of settings that differ."""
    return list(row) in [line.split() for line in out.splitlines()]


def test_row_36_more_iterations_are_allowed_and_told(run, output_dir):
    code, out, err = run("train.max_iter=5")
    assert code == 0, err
    assert "The run is resumed with other settings" in out
    assert is_told(out, "train.max_iter", "3", "5")
    assert (output_dir / "last_checkpoint").read_text() == "model_final.pth"


def test_row_36_fewer_iterations_than_are_done_are_an_error(run):
    code, _, err = run("train.max_iter=2")
    assert code == 2
    assert "is at iteration 3, beyond train.max_iter=2: raise that" in err


@pytest.mark.parametrize(
    "override, text",
    [
        ("optimizer.lr=0.5", "lr is 0.5 in the config and 0.0001 in the checkpoint"),
        ("optimizer.weight_decay=0.5", "weight_decay is 0.5 in the config and 0.0001 in the checkpoint"),
    ],
)
def test_row_36_another_optimizer_is_an_error_with_both_values(run, output_dir, override, text):
    before = {file.name: file.read_bytes() for file in output_dir.glob("*.pth")}
    code, _, err = run("train.max_iter=5", override)
    assert code == 2
    assert text in err and "Resume with the settings of the run, or start another one from its weights" in err
    assert {file.name: file.read_bytes() for file in output_dir.glob("*.pth")} == before


def test_row_36_other_data_is_told_and_goes_on_after_as_many_images(run, tmp_path):
    change_json(tmp_path / "train.json", lambda coco: coco["images"].pop())
    change_json(tmp_path / "train.json", lambda coco: coco["annotations"].pop())
    code, out, err = run("train.max_iter=5")
    assert code == 0, err
    assert "Resuming not exactly: the training data had 8 images and has 7: it goes on after as many images" in out


def test_row_36_another_model_is_an_error(run):
    code, _, err = run("train.max_iter=5", "model.embed_dim=16")
    assert code == 2
    assert "is not of this model" in err
