"""Evaluation without detections, with detections of unknown classes, and beside crowds; two runs in one folder."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from dinox.config import load_config
from dinox.engine.setup import LOCK_FILE
from dinox.evaluation import evaluate_model
from tests.engine.tiny import TinyDetector

from .own_data import HEIGHT, WIDTH, change_json, write_dataset

CONFIG = "--config-file"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path, forget_datasets):
    return write_dataset(tmp_path)


@pytest.fixture
def weights(tmp_path):
    torch.save(TinyDetector(num_classes=2).state_dict(), tmp_path / "weights.pth")
    return f"train.init_checkpoint={tmp_path / 'weights.pth'}"


def results_of(config, output_dir, detections):
    """Metrics of a detector that finds ``detections``, boxes (x1, y1, x2, y2) of class 0, in every image."""

    def detect(inputs):
        found = Instances((HEIGHT, WIDTH))
        found.pred_boxes = Boxes(torch.tensor(detections, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.linspace(0.9, 0.5, len(detections))
        found.pred_classes = torch.zeros(len(detections), dtype=torch.int64)
        return [{"instances": found} for _ in inputs]

    loaders = load_config(str(config), [f"train.output_dir={output_dir}"]).dataloader
    return evaluate_model(detect, instantiate(loaders.test), instantiate(loaders.evaluator))


def test_row_23_detections_of_a_crowd_are_not_held_against_the_model(config, output_dir, tmp_path):
    """The first detection of an image is its object; the other one, with a higher score, is in the crowd."""
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    found = [[30, 10, 60, 40], [4, 6, 24, 16]]
    plain = results_of(config, output_dir / "plain", found)

    def add_crowds(content):
        for image in range(8):
            box = {"bbox": [28, 8, 36, 40], "area": 1440.0, "segmentation": crowd}
            content["annotations"].append(
                {"id": 50 + image, "image_id": 100 + image, "category_id": 1, "iscrowd": 1, **box}
            )

    change_json(tmp_path / "val.json", add_crowds)
    assert results_of(config, output_dir / "crowd", found)["bbox/AP"] == pytest.approx(100)
    assert plain["bbox/AP"] < 60


def test_row_39_no_detections_score_zero(dinox, config, weights, output_dir, tmp_path):
    results = tmp_path / "results.json"
    settings = [weights, f"train.output_dir={output_dir}", "model.min_score=2.0"]
    code, _, err = dinox("eval", CONFIG, config, "--json", results, *settings)
    assert code == 0, err
    metrics = json.loads(results.read_text())["results"]
    assert metrics["detections/count"] == 0
    assert metrics["bbox/AP"] == metrics["bbox/AP50"] == 0


def test_row_39_detections_of_a_class_that_the_dataset_lacks_are_an_error(
    dinox, config, weights, output_dir, monkeypatch
):
    detect = TinyDetector._detections

    def detect_third_class(self, *args):
        found = detect(self, *args)
        found["instances"].pred_classes[:] = 2
        return found

    monkeypatch.setattr(TinyDetector, "_detections", detect_third_class)
    code, out, err = dinox("eval", CONFIG, config, weights, f"train.output_dir={output_dir}")
    assert code == 2
    assert err.startswith("dinox: error: ") and err.count("\n") == 1 and "--debug" not in err
    assert "0.png: the model detects class 2 (counted from 0), but dataset 'own_val' has 2 classes" in err
    assert "AP50" not in out


def test_row_39_a_model_with_more_classes_than_the_dataset_is_an_error(dinox, config, weights, output_dir):
    code, _, err = dinox("eval", CONFIG, config, weights, "model.num_classes=3", f"train.output_dir={output_dir}")
    assert code == 2
    assert "model.num_classes is 3, but dataset 'own_val' has 2 classes (cat, dog)" in err


# ------------------------------------------------------------------------------------------------- one folder, two runs

HOLD = """
import sys, time
from types import SimpleNamespace
from omegaconf import OmegaConf
from dinox.engine.setup import opened_output_folder

with opened_output_folder(sys.argv[1], cfg=OmegaConf.create(), log=SimpleNamespace(open_file=lambda folder: None)):
    print("locked", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other_run(output_dir):
    """Another process that trains into the output folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HOLD, output_dir]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_row_39_two_processes_in_one_folder(dinox, config, output_dir, other_run):
    before = {file.name: file.read_bytes() for file in output_dir.iterdir()}
    for resume in ([], ["--resume"]):
        code, _, err = dinox("train", CONFIG, config, f"train.output_dir={output_dir}", *resume)
        assert code == 2
        assert err.startswith("dinox: error: ") and err.count("\n") == 1 and "--debug" not in err
        assert f"train.output_dir={output_dir} is in use" in err
        assert f"process {other_run.pid} on {socket.gethostname()}" in err
        assert {file.name: file.read_bytes() for file in output_dir.iterdir()} == before
    # It ends, in whatever way, and the folder is free at once.
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    code, _, err = dinox("train", CONFIG, config, f"train.output_dir={output_dir}")
    assert code == 0, err
    assert (output_dir / "model_final.pth").is_file()


def test_row_39_a_run_that_ended_leaves_its_folder_free(dinox, config, output_dir):
    for resume in ([], ["--resume"]):
        code, _, err = dinox("train", CONFIG, config, f"train.output_dir={output_dir}", *resume)
        assert code == 0, err
    assert f"process {os.getpid()} on " in (output_dir / LOCK_FILE).read_text()
