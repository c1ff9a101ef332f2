"""dinox predict as it is typed."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dinox import Predictor
from dinox.checkpoint import load_weights
from dinox.cli.predict import split_overrides
from tests.cli.conftest import TINY_CONFIG
from tests.inference.marker import marker_config, picture, write_checkpoint

RED, BLUE = (10, 20, 30, 50), (50, 5, 70, 25)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a checkpoint and three images."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model.pth", marker_config())
    (tmp_path / "photos").mkdir()
    for name, marks in {"a.png": {"red": RED}, "b.png": {"red": RED, "blue": BLUE}, "c.png": {}}.items():
        Image.fromarray(picture(**marks)).save(tmp_path / "photos" / name)
    return tmp_path


def run_as_program(*arguments):
    command = [sys.executable, "-m", "dinox", "predict", *arguments, "--weights", "model.pth"]
    command += ["--allow-target", "tests.inference.marker"]
    root = str(TINY_CONFIG.split("/tests/")[0])
    environment = {"PYTHONPATH": root, "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def predict(dinox, place):
    """``dinox predict`` with the checkpoint, whose config calls a class of the tests."""

    def run(*arguments):
        return dinox("predict", *arguments, "--weights", "model.pth", "--allow-target", "tests.inference.marker")

    return run


def test_a_folder_is_drawn_counted_and_summed_up(predict, place):
    code, out, err = predict("photos")
    assert (code, err) == (0, "")
    assert (
        "photos/a.png  1 red\n" in out and "photos/b.png  1 red, 1 blue\n" in out and "photos/c.png  nothing\n" in out
    )
    assert "3 images, 3 detections with a score of at least 0.3: 2 red, 1 blue" in out
    assert "pictures    output/predict\n" in out
    assert sorted(path.name for path in (place / "output" / "predict").iterdir()) == ["a.png", "b.png", "c.png"]


def test_a_second_run_goes_to_a_folder_of_its_own(predict, place):
    predict("photos/a.png")
    assert "pictures    output/predict-2\n" in predict("photos")[1]
    assert [path.name for path in (place / "output" / "predict").iterdir()] == ["a.png"]


def test_a_given_folder_is_not_overwritten_unless_told(predict, place):
    (place / "out").mkdir()
    (place / "out" / "a.png").write_text("precious")
    code, _, err = predict("photos", "--output", "out")
    assert code == 2 and "out/a.png (what is found in photos/a.png) is there already" in err and "--overwrite" in err
    assert (place / "out" / "a.png").read_text() == "precious"
    assert predict("photos", "--output", "out", "--overwrite")[0] == 0


def test_results_are_written_as_json(predict, place):
    options = ["--json", "all.json", "--coco-json", "coco.json", "--no-pictures", "--classes", "red"]
    code, out, _ = predict("photos", *options, "--score-threshold", "0.2", "--batch-size", "2")
    assert code == 0
    assert "coco json   coco.json\nits images  coco.images.json\njson        all.json\n" in out
    results = json.loads((place / "all.json").read_text())
    assert results["command"] == "predict" and results["class_names"] == ["red", "blue"]
    assert [len(image["detections"]) for image in results["images"]] == [1, 1, 0]
    [detection] = results["images"][0]["detections"]
    assert detection["class"] == "red" and detection["box"] == pytest.approx(RED, abs=1.5)
    assert len(json.loads((place / "coco.json").read_text())) == 2
    assert not (place / "output").exists()
    code, _, err = predict("photos", *options)
    assert code == 2 and "all.json (--json) (and 2 more of this run) is there already" in err


def test_paths_come_from_standard_input(predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/a.png\nphotos/c.png\n"))
    assert "2 images, 1 detection with" in predict("-")[1]


def test_overrides_may_stand_before_and_behind_the_options(predict):
    key = "dataloader.test.mapper.augmentations"
    code, out, err = predict(f"{key}.short_edge=32", "photos/*.png", f"{key}.max_size=40")
    assert code == 0, err
    assert "3 images" in out
    code, _, err = predict("photos/a.png", f"{key}.short_egde=32")
    assert code == 2 and "short_egde" in err and "Did you mean" in err


def test_an_input_with_an_equals_sign_is_a_file_if_it_is_there(place):
    (place / "a=1.png").touch()
    assert split_overrides(["a=1.png", "b=1.png", "x/c=1.png"]) == (["a=1.png", "x/c=1.png"], ["b=1.png"])


def test_tiles_find_what_is_lost_otherwise(predict, place):
    Image.fromarray(picture(height=640, width=640, red=(301, 421, 303, 423))).save(place / "large.png")
    assert "1 image, 0 detections" in predict("large.png")[1]
    assert "1 image, 1 detection " in predict("large.png", "--tile", "128")[1]


@pytest.mark.parametrize(
    "options",
    [
        ["--json", "model.pth"],
        ["--coco-json", "photos/a.png"],
        ["--coco-json", "s.json", "--json", "s.json"],
        ["--coco-json", "s.json", "--json", "s.images.json"],
        ["--coco-json", "gt.json", "--coco-images", "gt.json"],
        ["--coco-json", "r.json", "--coco-images", "gt.json", "--json", "gt.json"],
        ["--output", "photos"],
    ],
)
def test_nothing_that_is_read_or_written_is_overwritten(predict, place, options):
    images = [{"id": index, "file_name": name} for index, name in enumerate(["a.png", "b.png", "c.png"])]
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    (place / "gt.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    code, _, err = predict("photos", *options, "--overwrite")
    assert code == 2 and err.count("\n") == 1
    assert "would overwrite what this command reads" in err or "would both be written to" in err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_file_name_that_is_no_text_is_printed_escaped(place):
    name = os.fsencode(place) + b"/photos/caf\xe9.png"
    Image.fromarray(picture(red=RED)).save(os.fsdecode(name))
    done = run_as_program("photos", "--json", "all.json")
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png  1 red" in done.stdout
    assert any(
        image["file"].endswith("caf\udce9.png") for image in json.loads((place / "all.json").read_text())["images"]
    )


def test_the_orientation_of_files_is_read_as_the_checkpoints_config_says(dinox, place):
    cfg = marker_config()
    cfg.dataloader.test.mapper.exif = "ignore"
    write_checkpoint(place / "stored.pth", cfg)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(red=RED)).save("turned.png", exif=exif)
    for weights, size in (("stored.pth", (60, 80)), ("model.pth", (80, 60))):
        options = ["--weights", weights, "--allow-target", "tests.inference.marker", "--no-pictures", "--overwrite"]
        assert dinox("predict", "turned.png", *options, "--json", "all.json")[0] == 0
        [image] = json.loads((place / "all.json").read_text())["images"]
        assert (image["height"], image["width"]) == size


# --------------------------------------------------------------------------------------------------------------- faults


def test_row_01_one_unreadable_image_is_one_line(predict, place):
    (place / "photos" / "b.png").write_bytes((place / "photos" / "b.png").read_bytes()[:60])
    code, out, err = predict("photos/b.png")
    assert code == 2 and out == ""
    assert err.startswith("dinox: error: Image photos/b.png cannot be read: ") and err.count("\n") == 1


def test_row_01_of_many_the_others_are_finished_and_the_failures_listed(predict, place):
    (place / "photos" / "b.png").write_text("<html>")
    code, out, err = predict("photos", "photos/gone.jpg", "--json", "all.json")
    assert code == 1
    assert "2 images, 1 detection with" in out
    assert err.startswith("dinox: error: 2 of 4 inputs failed:\n  Image photos/b.png cannot be read")
    assert "\n  Image photos/gone.jpg cannot be read" in err
    assert sorted(path.name for path in (place / "output" / "predict").iterdir()) == ["a.png", "c.png"]
    failures = json.loads((place / "all.json").read_text())["failures"]
    assert [failure["file"] for failure in failures] == ["photos/b.png", "photos/gone.jpg"]


def test_row_07_what_is_lost_on_reading_is_counted_once(predict, place, caplog):
    for name in ("d.png", "e.png"):
        Image.new("RGBA", (20, 20)).save(place / "photos" / name)
    assert predict("photos")[0] == 0
    assert [record.message.split("/")[-1] for record in caplog.records] == [
        "d.png is converted on reading: with transparency, which is dropped. "
        "Others like it are counted, and not named.",
        "Images converted on reading: 2 with transparency, which is dropped",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing/*.jpg"], "nothing/*.jpg: no image or video matches this pattern"),
        (["photos", "--score-threshold", "7"], "score_threshold: expected a number from 0 to 1, got 7.0"),
        (["photos", "--classes", "red,blu"], "the model has no class 'blu'. Did you mean 'blue'?"),
        (["photos", "--coco-images", "x.json"], "--coco-images x.json says what --coco-json refers to"),
        (["photos", "--coco-json", "no/such/folder.json"], "--coco-json no/such/folder.json: expected a file in an"),
        (["photos", "--tile", "3"], "tile: expected a whole number of at least 32, got 3"),
        (["photos", "--device", "gpu"], "device: expected 'cpu' or 'cuda', got 'gpu'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(predict, place, arguments, message):
    code, _, err = predict(*arguments)
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1
    assert message in err
    assert not (place / "output").exists()


def test_a_checkpoint_that_does_not_know_its_config_asks_for_one(dinox, place):
    write_checkpoint(place / "bare.pth")
    code, _, err = dinox("predict", "photos", "--weights", "bare.pth")
    assert code == 2
    assert "bare.pth does not say of which model it is" in err and "--config-file" in err


def test_row_29_a_checkpoint_may_call_nothing_unexpected(dinox, place):
    code, _, err = dinox("predict", "photos", "--weights", "model.pth")
    assert code == 2
    assert "tests.inference.marker.MarkerDetector" in err and "--allow-target" in err


def test_a_file_that_is_no_checkpoint_is_an_error(dinox, place):
    (place / "page.pth").write_text("<html>")
    code, _, err = dinox("predict", "photos", "--weights", "page.pth")
    assert code == 2 and "page.pth" in err


# ------------------------------------------------------------------------------------------------- behind a training


def test_a_checkpoint_of_a_training_predicts_without_its_config(dinox, tmp_path, monkeypatch, output_dir):
    assert dinox("train", "--config-file", TINY_CONFIG, f"train.output_dir={output_dir}", "train.max_iter=1")[0] == 0
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(height=96, width=96)).save("a.png")
    weights = str(output_dir / "model_final.pth")
    code, out, err = dinox(
        "predict", "a.png", "--weights", weights, "--allow-target", "tests.engine", "--score-threshold", "0"
    )
    assert code == 0, err
    assert "1 image, 1 detection" in out
    predictor = Predictor(weights, allow_targets=["tests.engine"])
    assert predictor.class_names == ("disk", "ring", "square", "triangle", "star", "cross")
    assert load_weights(predictor.detector.model, weights, purpose="evaluate").is_complete


def test_it_runs_as_a_program(place):
    """In a process of its own, whose stdout is no terminal: no progress bar."""
    done = run_as_program("photos")
    assert done.returncode == 0, done.stderr
    assert "3 images, 3 detections" in done.stdout
    assert "it/s" not in done.stderr


def test_the_averaged_weights_detect_unless_asked_otherwise(predict, place):
    file = place / "model.pth"
    content = torch.load(file, weights_only=True)
    content["ema"] = {name: tensor.clone() for name, tensor in content["model"].items()}
    for tensor in content["model"].values():
        tensor.zero_()
    torch.save(content, file)
    found = {ema: Predictor(str(file), allow_targets=["tests.inference.marker"], ema=ema) for ema in (True, False)}
    assert found[True].detector.model.weight.tolist() == [1, 1]
    assert found[False].detector.model.weight.tolist() == [0, 0]
    code, _, err = predict("photos", "--no-ema")
    assert (code, err) == (0, "")


def test_an_exported_model_has_one_set_of_weights(tmp_path):
    with pytest.raises(
        ValueError, match=r"model\.onnx is an exported model, which holds one set .* leave out --no-ema"
    ):
        Predictor(str(tmp_path / "model.onnx"), ema=False)
