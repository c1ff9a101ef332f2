import pytest
from omegaconf import OmegaConf

from dinox.analysis import Repetitions, analyze_model, report_rows
from dinox.config import load_config
from tests.small_models import DINO, RCNN, SMALL, SMALL_RCNN

QUICK = Repetitions(warmup=1, fewest=1, most=1)


@pytest.fixture(scope="module")
def cfg():
    return load_config(DINO, [*SMALL, "train.device=cpu"])


def test_all_measurements_of_a_config(cfg):
    report = analyze_model(cfg, size=(64, 96), batch_size=2, repetitions=QUICK)
    assert report.parameters[""].total > report.parameters["encoder"].total > 0
    assert report.gflops[""] > 0 and report.activations.total > 0
    rows = report_rows(report)
    assert rows[:2] == ["preprocessing", "backbone"] and rows[-2:] == ["backward", "optimizer step"]
    assert len(set(rows)) == len(rows)
    assert {*report.detection.seconds, *report.training.seconds, *report.activations.parts} <= set(rows)


def test_detectron2s_own_models_are_measured_as_well():
    cfg = load_config(RCNN, [*SMALL_RCNN, "train.device=cpu"])
    report = analyze_model(cfg, size=(64, 96), timing=False)  # SGD is for pretrained weights, or there are NaNs
    parts = ["backbone", "proposal_generator", "roi_heads"]
    assert all(report.parameters[part].training_only == 0 for part in parts)
    assert set(parts) <= report.activations.parts.keys() and set(parts) <= set(report_rows(report))


def test_without_timing(cfg):
    report = analyze_model(cfg, size=(64, 64), timing=False)
    assert report.detection is None and report.training is None
    assert report_rows(report)[0] == "backbone"


def test_gflops_are_of_one_image_whatever_the_batch(cfg):
    one, two = (analyze_model(cfg, size=(64, 64), batch_size=n, timing=False) for n in (1, 2))
    assert one.gflops == two.gflops
    assert one.activations.total < two.activations.total


def test_the_config_is_not_changed(cfg):
    before = OmegaConf.to_container(cfg, resolve=False)
    analyze_model(cfg, size=(64, 64), repetitions=QUICK)
    assert OmegaConf.to_container(cfg, resolve=False) == before


def test_mixed_precision_is_the_configs(cfg):
    mixed = load_config(DINO, [*SMALL, "train.amp.enabled=True"])
    assert analyze_model(mixed, size=(64, 64), timing=False).precision == "bf16"
    assert analyze_model(cfg, size=(64, 64), timing=False).precision == "fp32"


@pytest.mark.parametrize("arguments", [{"size": (0, 64)}, {"batch_size": 0}])
def test_sizes_that_are_none(cfg, arguments):
    with pytest.raises(ValueError, match="of at least 1, got"):
        analyze_model(cfg, timing=False, **arguments)


def test_a_config_without_a_model():
    with pytest.raises(ValueError, match=r"this config has no model.*found: dataloader"):
        analyze_model(load_config("common/data/coco_detr"))
