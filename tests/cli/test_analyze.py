import json

import pytest
from PIL import Image

from tests.cli.conftest import TINY_CONFIG
from tests.engine.conftest import TINY_DINO_CONFIG
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


# ------------------------------------------------------------------------------------------------------------- matching


@pytest.fixture(scope="module")
def dino_run(tmp_path_factory):
    """The folder of a run of three epochs that measured its own matching."""
    from dinox.cli import main

    folder = tmp_path_factory.mktemp("runs") / "tiny_dino"
    assert main(["train", "--config-file", TINY_DINO_CONFIG, f"train.output_dir={folder}"]) == 0
    return folder


def test_matching_of_a_run_is_what_was_measured_in_training(dinox, dino_run, tmp_path):
    target, pictures = tmp_path / "matching.json", tmp_path / "new" / "pictures"
    options = ["--images", 5, "--output", pictures, "--pictures", 2, "--json", target]
    code, out, err = dinox("analyze", "matching", dino_run, *options)
    assert code == 0, err
    assert "5 images of dinox_tiny_val with" in out and "ATD(100)" in out and "queries are ranked proposals" in out
    main_table, unstable = out.split("Unstable scores")
    assert [line.split()[:3] for line in main_table.splitlines() if line.startswith("model_")] == [
        ["model_0000001.pth", "2", "1"],
        ["model_0000003.pth", "4", "2"],
        ["model_final.pth", "6", "3"],
    ]
    result = json.loads(target.read_text())
    assert result["command"] == "analyze matching"
    lines = map(json.loads, (dino_run / "metrics.json").read_text().splitlines())
    measured = {line["iteration"] + 1: line for line in lines if "matching/atd_100" in line}
    assert [row["iterations"] for row in result["checkpoints"]] == list(measured)
    for row in result["checkpoints"]:
        in_training = measured[row["iterations"]]
        assert row["instability"] == in_training.get("matching/instability")  # none the first time
        # The same weights on the same images: nothing but rounding of sums in float64 may differ.
        for key, name in (("anchor_target_l1", "anchor_target_l1"), ("atd", "atd_100"), ("atd_small", "atd_100_small")):
            assert row[key] == pytest.approx(in_training[f"matching/{name}"], rel=1e-6)
        assert row["unstable_scores"] == [in_training[f"matching/unstable_{layer}"] for layer in range(2)]
        printed = next(line for line in unstable.splitlines() if line.startswith(row["name"]))
        assert printed.split()[1:] == [f"{score:.2f}" for score in row["unstable_scores"]]
    assert sorted(str(path) for path in pictures.iterdir()) == sorted(result["pictures"])
    assert len(result["pictures"]) == 4 and all(Image.open(path).width > 100 for path in result["pictures"])


def test_one_checkpoint_has_distances_and_settings_can_be_changed(dinox, dino_run, tmp_path):
    options = ["--top-k", "3", "dataloader.test.dataset.names=dinox_tiny_train", "--output", tmp_path / "out"]
    code, out, _ = dinox("analyze", "matching", dino_run / "model_final.pth", *options)
    assert code == 0
    assert "8 images of dinox_tiny_train" in out and "ATD(3)" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("model_final.pth"))
    assert row[3] == "-"
    assert out.count("picture  ") == 5 and "curves" not in out and "unstable_scores.png" in out


def test_unstable_scores_of_another_run_stand_beside(dinox, dino_run, tmp_path):
    """Two models at the same step, as in Stable-DINO's figure 3."""
    other = tmp_path / "dino.json"
    other.write_text(json.dumps({"checkpoints": [{"name": "model_0004999.pth", "unstable_scores": [12.5, None]}]}))
    options = ["--beside", other, "--images", 2, "--output", tmp_path / "out", "--pictures", 0]
    code, out, err = dinox("analyze", "matching", *options, "--", dino_run / "model_final.pth")
    assert code == 0, err
    own, beside = out.split("decoder layer")[-1].split("picture")[0].splitlines()[1:3]
    assert own.startswith("tiny_dino/model_final.pth") and beside.split() == ["dino", "12.50", "-"]


def test_curves_of_matching_have_their_least_value_as_the_best(dinox, dino_run, tmp_path):
    target = tmp_path / "curves.json"
    metric = "matching/anchor_target_l1"
    options = ["--metric", metric, "--x", "epochs", "--output", tmp_path / "a.png", "--json", target]
    code, out, _ = dinox("analyze", "curves", dino_run, *options)
    assert code == 0
    (curve,) = [run["curves"][metric]["values"] for run in json.loads(target.read_text())["runs"]]
    assert out.splitlines()[2].split()[-1] == f"{min(curve):.4g}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--images", "0"], "--images: expected a number of at least 1, got 0"),
        (["--top-k", "0"], "--top-k: expected a number of at least 1, got 0"),
        (["--pictures", "-1"], "--pictures: expected a number of at least 0, got -1"),
        (["--output", __file__], "--output " + __file__ + ": expected a folder for pictures, this is a file"),
        (["--output", __file__ + "/a"], "expected a folder that can be written, got " + __file__),
        (["--json", "nowhere/at/all.json"], "expected a file in an existing folder"),
        (["--beside", "nowhere.json"], "nowhere.json: cannot be read (No such file or directory)"),
        (["--beside", __file__], ": expected results with unstable scores, as `dinox analyze matching"),
        (["--device", "tpu"], "--device: expected 'cpu' or 'cuda', got 'tpu'"),
        (["model.num_querys=3"], "Did you mean 'model.num_queries'"),
        (["model.criterion=null"], "expected a detection transformer with a matcher"),
        (["dataloader.test.dataset.names=dinox_tiny_vall"], "Did you mean 'dinox_tiny_val'"),
        (["model.embed_dim=64"], "model_0000001.pth is not of this model"),
    ],
)
def test_a_mistake_about_matching_is_one_line(dinox, dino_run, arguments, message):
    code, _, err = dinox("analyze", "matching", dino_run, *arguments)
    assert code == 2
    assert is_one_line(err) and message in err, err


@pytest.mark.parametrize(
    "place, message",
    [
        ("nowhere.pth", "checkpoint nowhere.pth: no such file"),
        ("empty", "empty: no model_*.pth in it: expected checkpoints, or the output folder"),
        ("model.num_queries=3", "which checkpoints? Got 'model.num_queries=3' only"),
    ],
)
def test_places_without_checkpoints_are_named(dinox, place, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, _, err = dinox("analyze", "matching", place)
    assert code == 2
    assert is_one_line(err) and message in err


@pytest.mark.parametrize("argv", [[], ["modell"], ["curves"], ["curves", "a", "--x", "epoch"]])
def test_a_wrong_command_line_is_code_2(dinox, argv):
    code, _, err = dinox("analyze", *argv)
    assert code == 2
    assert "usage: dinox analyze" in err
