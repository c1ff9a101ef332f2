"""The tables of all configs are what the configs, the results and the counting say now."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torch import nn

from dinox import model_zoo
from dinox.analysis import Complexity, measure_complexity
from dinox.config import load_config

ROOT = Path(__file__).parents[2]
SMALLEST = "dino/dino_demo"


sys.path.append(str(ROOT / "tools"))  # its scripts import each other
zoo_rows = importlib.import_module("zoo_rows")
zoo_table = importlib.import_module("zoo_table")


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in zoo_rows.collect(ROOT)}


def test_the_tables_are_up_to_date(rows):
    assert zoo_table.stale(list(rows.values()), ROOT) == [], f"run `{zoo_table.COMMAND}`"


def test_the_gflops_of_a_small_config_are_those_in_the_table(rows):
    counted = measure_complexity(instantiate(model_zoo.get_config(SMALLEST).model).to("cpu")).gflops[""]
    assert rows[SMALLEST].gflops == pytest.approx(counted, abs=0.01)


def test_parameters_on_the_meta_device_are_those_of_the_model(rows):
    model = instantiate(model_zoo.get_config(SMALLEST).model)
    assert rows[SMALLEST].parameters == sum(p.numel() for p in model.parameters())


def test_parts_are_read_off_the_config(rows):
    parts = rows["dino/ablation_static_queries"].parts
    assert parts["backbone"] == "ResNet-50, 4 levels"
    assert parts["encoder"] == "6 x DeformableEncoder"
    assert parts["query selection"] == "-"
    assert "matching: LearnedContent, LearnedAnchors" in parts["query groups"]
    assert parts["decoder"] == "6 x DeformableDecoder, look forward once"
    assert parts["losses"] == "FocalLoss, L1Loss, GIoULoss"
    assert parts["other parts"] == ""


def test_wrapped_and_unusual_parts_are_named():
    model = OmegaConf.create(
        {
            "encoder": L(nn.Bilinear)(encoder=L(nn.Linear)(num_layers=6)),
            "heads": L(nn.Fold)(),
            "auxiliary": L(nn.Flatten)(),
        }
    )
    parts = zoo_rows.describe_parts(model)
    assert parts["encoder"] == "Bilinear(6 x Linear)"
    assert parts["other parts"] == "Fold, Flatten"


def test_detectron2s_own_models_have_a_row_without_gflops(rows, monkeypatch):
    """Those of a two-stage detector depend on how many regions its weights propose, and there are no weights."""
    monkeypatch.setattr(zoo_rows, "measure_complexity", None)
    row = rows["dn_detr/dn_faster_rcnn_r50_fpn_1x"]
    assert row.parts["backbone"] == "ResNet-50" and row.parts["other parts"] == "RPN, DenoisingROIHeads"
    assert row.parameters == pytest.approx(41.7e6, rel=0.01) and row.gflops is None
    assert zoo_rows.count_gflops([row], recount=True) == {row.model: None}


def test_models_that_detect_alike_are_counted_once(rows, monkeypatch):
    counts = iter([Complexity(parameters={}, gflops={"": 7.0})])  # no second one
    monkeypatch.setattr(zoo_rows, "measure_complexity", lambda model: next(counts))
    monkeypatch.setattr(zoo_rows, "instantiate", lambda cfg: nn.Identity())
    same = [rows[f"dino/dino_r50_4scale_{epochs}ep"] for epochs in (12, 24, 36)]
    assert zoo_rows.count_gflops(same, recount=True) == {same[0].model: 7.0}
    assert zoo_rows.count_gflops(same, recount=False) == {same[0].model: same[0].gflops}


def test_what_changes_the_gflops_changes_the_hash_and_what_does_not_does_not():
    def hash_of(*overrides):
        return zoo_rows.hash_model(load_config("dino/dino_r50_4scale_12ep", overrides))

    assert hash_of("model.encoder.num_layers=3") != hash_of()
    assert hash_of("model.criterion.weights.giou=3.0", "schedule.epochs=5") == hash_of()


def test_stale_tables_and_counts_are_named(rows, tmp_path):
    counts = json.loads((ROOT / "projects" / "complexity.json").read_text())
    counts["configs"] = {name: entry for name, entry in counts["configs"].items() if name.startswith("dino/")}
    counts["configs"][SMALLEST]["model"] = "another"
    counts["configs"]["dino/gone"] = {"model": "gone", "gflops": 1.0}
    texts = {"README.md": "old", "complexity.json": json.dumps(counts)}
    texts["dino/README.md"] = (ROOT / "projects" / "dino" / "README.md").read_text().replace("| 49.0 ", "| 50.0 ")
    for name, text in texts.items():
        (tmp_path / "projects" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "projects" / name).write_text(text)
    expected = [SMALLEST, "dino/gone", "projects/README.md", "projects/dino/README.md"]
    assert zoo_table.stale([row for row in rows.values() if row.project == "dino"], tmp_path) == expected


def test_a_readme_without_markers_is_named(rows, tmp_path):
    (tmp_path / "projects" / "dino").mkdir(parents=True)
    (tmp_path / "projects" / "dino" / "README.md").write_text("# DINO\n")
    with pytest.raises(ValueError, match=r"dino/README\.md: expected the lines '<!-- configs"):
        zoo_table.render(list(rows.values()), tmp_path)


@pytest.mark.parametrize("lacking", ["command", "machine", "date", "ap"])
def test_a_measured_figure_tells_command_machine_and_date(tmp_path, lacking):
    entry = {"ap": 1.0, "command": "make demo", "machine": "a laptop", "date": "2026-01-01"}
    del entry[lacking]
    (tmp_path / "results.yaml").write_text(yaml.safe_dump({"measured": {"a": entry}}))
    with pytest.raises(ValueError, match=rf"results\.yaml: measured: a: {lacking} missing"):
        zoo_rows.read_results(tmp_path / "results.yaml", configs={"a"})


def test_results_of_a_config_that_is_not_there(tmp_path):
    (tmp_path / "results.yaml").write_text("published: {b: {ap: 1.0, source: table 1}}")
    with pytest.raises(ValueError, match="published: no config 'b'; expected one of a"):
        zoo_rows.read_results(tmp_path / "results.yaml", configs={"a"})
