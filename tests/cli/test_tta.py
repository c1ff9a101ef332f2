"""dinox eval and dinox predict with test-time augmentation, and the report of an evaluation."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dinox.cli.running import _ask_for_report
from dinox.cli.tta import TTAOptions
from dinox.inference import AugmentedDetector, NMSFusion, OneToOneEnsemble, View
from tests.cli.conftest import TINY_CONFIG
from tests.engine.tiny import TinyDetector
from tests.inference.marker import marker_config, picture, write_checkpoint

RED = (10, 20, 30, 50)


@pytest.fixture
def evaluate(dinox, tmp_path):
    """``dinox eval`` of a tiny model as it is initialised."""
    torch.manual_seed(0)
    torch.save({"model": TinyDetector(num_classes=6).state_dict()}, tmp_path / "model.pth")
    ending = [f"train.init_checkpoint={tmp_path / 'model.pth'}", f"train.output_dir={tmp_path / 'run'}"]
    return lambda *options: dinox("eval", "--config-file", TINY_CONFIG, *options, *ending)


def test_eval_looks_several_times_and_writes_a_report(evaluate, tmp_path, monkeypatch):
    shapes = []
    forward = TinyDetector.forward

    def noting(self, batched_inputs):
        shapes.append(tuple(batched_inputs[0]["image"].shape[-2:]))
        return forward(self, batched_inputs)

    monkeypatch.setattr(TinyDetector, "forward", noting)
    json_file, folder = tmp_path / "results.json", tmp_path / "report"
    code, _, err = evaluate("--tta", "1,0.5", "--report", folder, "--json", json_file)
    assert code == 0, err
    first, mirrored, half, _ = shapes[:4]
    assert first == mirrored and half == tuple(side // 2 for side in first)
    written = json.loads(json_file.read_text())
    assert written["tta"] == {"scales": "1,0.5", "no_flip": False, "fusion": None, "iou": None}
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.png",
        "precision_recall.png",
        "report.json",
        "scores.png",
    ]
    report = json.loads((folder / "report.json").read_text())
    assert [each["AP"] for each in report["classes"]] == pytest.approx(
        [value for name, value in written["results"].items() if name.startswith("bbox/AP-")]
    )
    assert len(shapes) == 4 * report["images"]


def test_predict_looks_several_times(dinox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model.pth", marker_config())
    Image.fromarray(picture(red=RED)).save("a.png")
    options = ["--weights", "model.pth", "--allow-target", "tests.inference.marker", "--no-pictures"]
    looks = []
    forward = AugmentedDetector.forward
    monkeypatch.setattr(AugmentedDetector, "forward", lambda self, x: looks.append(self.views) or forward(self, x))
    code, out, _ = dinox("predict", "a.png", *options, "--tta", "1,2", "--tta-no-flip")
    assert code == 0 and "1 red" in out
    assert looks == [(View(), View(scale=2.0))]


def test_options_make_the_detector():
    made = TTAOptions(scales="1,0.8", fusion="nms", iou=0.6).wrapper()(model=torch.nn.Identity())
    assert [(view.scale, view.flip) for view in made.views] == [(1, False), (1, True), (0.8, False), (0.8, True)]
    assert isinstance(made.fusion, NMSFusion) and made.fusion.iou_threshold == 0.6
    made = TTAOptions(scales="1").wrapper()(model=torch.nn.Identity())
    assert isinstance(made.fusion, OneToOneEnsemble) and TTAOptions().wrapper() is None


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tta", "big"], "--tta: expected scales such as 1,0.8,1.25, got 'big'"),
        (["--tta", "1,0"], "scale: expected a number above 0, got 0.0"),
        (["--tta", "1", "--tta-iou", "2"], "iou_threshold: expected a number from 0 to 1, got 2.0"),
        (["--tta-fusion", "nms"], "say how to do --tta SCALES: give that too"),
        (["--report", "model.pth"], "--report model.pth: expected a folder, this is a file"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(evaluate, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = evaluate(*options)
    assert code == 2 and err.startswith("dinox: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


def test_predict_refuses_the_same(dinox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("a.png")
    (tmp_path / "model.onnx").write_bytes(b"")
    code, _, err = dinox("predict", "a.png", "--weights", "model.onnx", "--tta", "1")
    assert code == 2 and "test-time augmentation needs a checkpoint" in err
    code, _, err = dinox("predict", "a.png", "--weights", "model.onnx", "--tta", "x")
    assert code == 2 and "--tta: expected scales" in err


def test_an_evaluator_without_reports_is_named():
    cfg = OmegaConf.create({"dataloader": {"evaluator": {"_target_": "dinox.evaluation.LvisEvaluator"}}})
    with pytest.raises(ValueError, match=r"--report here: the config's dataloader\.evaluator writes none"):
        _ask_for_report(cfg, "here")
