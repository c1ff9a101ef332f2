import json

import pytest

from tests.cli.conftest import TINY_CONFIG
from tests.small_models import DINO, SMALL


def is_one_line(err):
    return err.startswith("dinox: error: ") and err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------- model


def test_model_prints_one_table_and_writes_json(dinox, tmp_path):
    target = tmp_path / "model.json"
    code, out, _ = dinox("analyze", "model", DINO, *SMALL, "--size", 64, 96, "--batch-size", 2, "--json", target)
    assert code == 0
    assert f"{DINO} on 2 images of 64 x 96" in out
    rows = {line.split("  ")[0] for line in out.splitlines()}
    assert {"part", "preprocessing", "backbone", "encoder", "criterion", "backward", "optimizer step", "total"} <= rows
    header = next(line for line in out.splitlines() if line.startswith("part "))
    table = out[out.index(header) :].split("\n\n")[0].splitlines()
    assert all(len(line) <= len(header) for line in table)
    written = json.loads(target.read_text())
    assert written["command"] == "analyze model" and written["config_file"] == DINO
    assert written["parameters"][""]["trainable"] > 0 and written["training"]["seconds"]["backward"] > 0


def test_model_takes_overrides_everywhere_and_the_option_of_other_commands(dinox, tmp_path):
    flags = ["--no-timing", "--size", "64", "64"]
    jsons = [tmp_path / f"{i}.json" for i in range(2)]
    assert dinox("analyze", "model", DINO, SMALL[0], *flags, *SMALL[1:], "--json", jsons[0])[0] == 0
    assert dinox("analyze", "model", "--config-file", DINO, *flags, "--json", jsons[1], *SMALL)[0] == 0
    first, second = (json.loads(file.read_text()) for file in jsons)
    assert first == second
    assert first["detection"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "which config? Give a file, or a name"),
        (["dino/dino_r50_4scale_12epp"], "Did you mean 'dino/dino_r50_4scale_12ep'"),
        ([DINO, "model.num_querys=3"], "Did you mean 'model.num_queries'"),
        ([DINO, *SMALL, "--size", "0", "64"], "--size and --batch-size of at least 1, got 0 64 and 1"),
        (["common/data/coco_detr"], "this config has no model"),
        ([DINO, "--json", "nowhere/at/all.json"], "expected a file in an existing folder"),
    ],
)
def test_a_mistake_about_a_model_is_one_line(dinox, arguments, message):
    code, _, err = dinox("analyze", "model", *arguments)
    assert code == 2
    assert is_one_line(err) and message in err


# --------------------------------------------------------------------------------------------------------------- curves


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Folders of two short runs, with other batch sizes, of three epochs each."""
    from dinox.cli import main

    folders = [tmp_path_factory.mktemp("runs") / name for name in ("batch4", "batch2")]
    for folder, batch_size in zip(folders, (4, 2)):
        overrides = [f"train.output_dir={folder}", f"dataloader.train.total_batch_size={batch_size}"]
        assert main(["train", "--config-file", TINY_CONFIG, *overrides]) == 0
    return folders


def test_runs_of_other_batch_sizes_are_comparable_in_epochs(dinox, two_runs, tmp_path):
    picture, target = tmp_path / "curves.png", tmp_path / "curves.json"
    code, out, _ = dinox("analyze", "curves", *two_runs, "--output", picture, "--json", target)
    assert code == 0 and picture.is_file()
    assert "batch4" in out and "batch2" in out and str(picture) in out
    first, second = (run["curves"]["bbox/AP"] for run in json.loads(target.read_text())["runs"])
    assert first["iterations"] == [2, 4, 6] and second["iterations"] == [4, 8, 12]
    assert first["epochs"] == second["epochs"] == [1, 2, 3]
    assert first["hours"] == sorted(first["hours"]) and first["hours"][0] > 0


def test_metrics_axes_and_names_can_be_chosen(dinox, two_runs, tmp_path):
    names = ["--names", "small batch", "large batch", "--metric", "bbox/AP50", "loss_bbox", "--x", "iterations"]
    code, out, _ = dinox("analyze", "curves", *two_runs, "--output", tmp_path / "curves.pdf", *names)
    assert code == 0
    assert "small batch" in out and "bbox/AP50" in out and "hours" not in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--metric", "bbox/AB"], "Did you mean 'bbox/AP'"),
        (["--names", "one"], "--names: expected one for each of 2 runs, got 1"),
        (["--output", "curves.docx"], "curves.docx: expected a picture's name"),
        (
            ["--output", "nowhere/at/all.png"],
            "nowhere/at/all.png: expected the name of a picture in a folder",
        ),
    ],
)
def test_a_mistake_about_curves_is_one_line(dinox, two_runs, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = dinox("analyze", "curves", *two_runs, *arguments)
    assert code == 2
    assert is_one_line(err) and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_named(dinox, two_runs, tmp_path):
    code, _, err = dinox("analyze", "curves", two_runs[0], tmp_path)
    assert code == 2
    assert is_one_line(err) and f"{tmp_path}: no metrics.json in it" in err


@pytest.mark.parametrize("argv", [[], ["modell"], ["curves"], ["curves", "a", "--x", "epoch"]])
def test_a_wrong_command_line_is_code_2(dinox, argv):
    code, _, err = dinox("analyze", *argv)
    assert code == 2
    assert "usage: dinox analyze" in err
