"""``dinox export`` from a checkpoint to a file that runs."""

import json

import pytest
import torch
from PIL import Image

from dinox.export import OnnxDetector, exporting

from ..export.test_errors import shifted_sampler
from ..export.tiny import TINY, build_tiny, make_images
from ..small_models import DINO, SMALL

FIXED = ["--size", "64", "64", "--batch", "1"]  # fast to trace


@pytest.fixture(scope="module")
def model():
    return build_tiny()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.effect_noise((90, 70), 80).convert("RGB").save(path)
    return path


@pytest.fixture
def export(dinox, weights, tmp_path):
    """Run the command on the tiny model -> (exit code, stdout, stderr)."""

    def run(name, *arguments, overrides=TINY):
        config = ["--config-file", DINO, "--weights", weights]
        return dinox("export", tmp_path / name, *config, *FIXED, *arguments, *SMALL, *overrides)

    return run


def test_a_file_of_a_model_with_nms_comes_with_a_sentence_about_it(export, tmp_path):
    nms = "model.postprocess={_target_: dinox.modeling.ClassNMS, ranking: {_target_: dinox.modeling.TopKDetections}}"
    tiny = [override for override in TINY if "num_detections" not in override]
    code, out, err = export("tiny.pt2", nms, "--json", tmp_path / "result.json", overrides=tiny)
    assert code == 0, err
    assert "NMS is not in the file: the model runs nms within each class (IoU above 0.8) on its best\n300" in out
    said = json.loads((tmp_path / "result.json").read_text())["description"]["nms_outside"]
    assert said == {"method": "nms", "iou_threshold": 0.8, "min_score": None, "num_detections": None}


def test_a_checkpoint_becomes_an_onnx_file_with_a_table_and_json_that_predict_runs(
    dinox, export, picture, model, tmp_path
):
    code, out, err = export("tiny.onnx", "--json", tmp_path / "result.json")
    assert (code, err.count("error")) == (0, 0)
    assert "images" in out and "64 x 64" in out
    assert "The file computes what the model computes: largest difference" in out
    assert f"Next: dinox predict --weights {tmp_path / 'tiny.onnx'}" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["ok"] and result["bytes"] == (tmp_path / "tiny.onnx").stat().st_size
    assert result["comparisons"][0]["case"] == {"batch": 1, "height": 64, "width": 64}
    assert result["description"]["input_format"] == "RGB" and result["description"]["short_edge"] == 800

    arguments = ["--no-pictures", "--score-threshold", "0", "--coco-json", tmp_path / "found.json"]
    code, _, err = dinox("predict", picture, "--weights", tmp_path / "tiny.onnx", *arguments)
    assert code == 0, err
    boxes = torch.tensor([entry["bbox"] for entry in json.loads((tmp_path / "found.json").read_text())])
    assert 0 < len(boxes) <= 30 and (boxes >= 0).all() and (boxes[:, :2] <= torch.tensor([90, 70])).all()

    detector = OnnxDetector(tmp_path / "tiny.onnx")
    (found,) = detector(make_images((64, 64)))
    (expected,) = model(make_images((64, 64)))
    torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, atol=1e-4, rtol=0)


def test_random_weights_become_a_program_by_its_ending_over_a_file_that_is_there(dinox, tmp_path):
    path = tmp_path / "tiny.pt2"
    path.write_text("old")
    places = ["--preprocessing", "inside", "--postprocessing", "inside", "--overwrite"]
    code, out, _ = dinox("export", path, "--random-weights", "--config-file", DINO, *places, *FIXED, *SMALL, *TINY)
    assert code == 0 and "weights are random numbers" in out and "scores" in out
    boxes, scores, classes = torch.export.load(path).module()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert boxes.shape == (1, 30, 4) and scores.shape == classes.shape == (1, 30)


def test_a_file_that_differs_from_the_model_ends_with_1_and_is_not_kept(export, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.SAMPLERS, "grid", shifted_sampler)
    code, out, _ = export("tiny.pt2", "--json", tmp_path / "result.json")
    assert code == 1
    assert "tiny.pt2 was not kept: its outputs differ from the model's" in out
    assert not (tmp_path / "tiny.pt2").exists()
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["ok"] and result["comparisons"][0]["logits"] > 1e-3


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("tiny.pth", [], "expected a name that ends in .onnx or .pt2, got the ending '.pth'"),
        ("tiny.onnx", ["--opset", "15"], "opset: expected 18 or more, got 15"),
        ("tiny.pt2", ["--opset", "18"], "--opset 18 is a setting of ONNX files"),
        ("tiny.onnx", ["--batch", "0"], "batch: expected a number above 0, got 0"),
        ("tiny.onnx", ["model.num_querys=3"], "model.num_querys"),
        ("tiny.onnx", ["--json", "/nowhere/x.json"], "--json /nowhere/x.json"),
    ],
)
def test_mistakes_end_with_2_and_one_line(export, tmp_path, name, arguments, message):
    code, _, err = export(name, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_the_command_is_told_to_replace_it(export, tmp_path):
    (tmp_path / "tiny.pt2").write_text("old")
    code, _, err = export("tiny.pt2")
    assert code == 2 and "is there already" in err and (tmp_path / "tiny.pt2").read_text() == "old"


def test_weights_have_to_be_named(dinox, tmp_path):
    code, _, err = dinox("export", tmp_path / "tiny.onnx", "--config-file", DINO)
    assert code == 2 and "--weights" in err and "--random-weights" in err
    code, _, err = dinox("export", tmp_path / "tiny.onnx", "--random-weights")
    assert code == 2 and "--random-weights needs --config-file" in err
