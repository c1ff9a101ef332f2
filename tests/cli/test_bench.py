import json

import pytest
import torch

from dinox.analysis.operators import CASES, Case
from dinox.analysis.speed import Workload, measure_speed, measure_speed_apart
from dinox.cli import bench_speed
from dinox.config import load_config
from tests.engine.conftest import TINY_DINO_CONFIG
from tests.small_models import DINO, small_overrides


@pytest.fixture
def tiny_case(monkeypatch):
    monkeypatch.setitem(CASES, "tiny", Case("tiny", "", ((6, 8), (3, 4)), None, 1))


def test_it_prints_a_row_for_each_implementation_and_writes_json(dinox, tiny_case, tmp_path):
    threads = torch.get_num_threads()
    file = tmp_path / "bench.json"
    arguments = [
        "--cases",
        "tiny",
        "--device",
        "cpu",
        "--threads",
        1,
        "--dtypes",
        "fp32",
        "--rounds",
        1,
        "--json",
        file,
    ]
    try:
        code, out, err = dinox("bench", "op", *arguments)
    finally:
        torch.set_num_threads(threads)
    assert code == 0, err
    measurements = json.loads(file.read_text())["measurements"]
    assert {"dinox", "dinox fused", "grid_sample"} <= {m["contender"] for m in measurements}
    rows = [line for line in out.splitlines() if line.startswith("tiny")]
    assert len(rows) == len(measurements)
    assert "1 threads" in out


def test_without_a_gpu_it_says_what_it_would_measure(dinox, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = dinox("bench", "op", "--device", "cuda")
    assert code == 2
    assert "finds no CUDA device" in err
    assert "E4b2, E5, D1100 in fp32 and bf16, cold and warm" in err


SMALL = [*small_overrides(DINO), "model.num_queries=8"]
QUICK = ["--size", 64, 64, "--steps", 1, "--warmup", 0, "--device", "cpu", "--threads", 1]


@pytest.fixture
def in_this_process(monkeypatch):
    """Starting a fresh one for every row takes seconds."""
    monkeypatch.setattr(bench_speed, "measure_speed_apart", measure_speed)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_sets_of_overrides_are_rows_of_one_table(dinox, in_this_process, tmp_path):
    file = tmp_path / "step.json"
    code, out, err = dinox(
        "bench", "step", DINO, *SMALL, "--sets", "", "model.decoder.num_layers=1", *QUICK, "--json", file
    )
    assert code == 0, err
    overrides = [row["overrides"] for row in json.loads(file.read_text())["rows"]]
    assert overrides == [SMALL, [*SMALL, "model.decoder.num_layers=1"]]
    rows = [line.split() for line in out.splitlines() if line.startswith(("as it is", "model.decoder"))]
    assert len(rows) == 2 and "1.00x" in rows[0]


def test_detection_of_several_configs(dinox, in_this_process):
    other = "dino/dino_r50_4scale_24ep"
    code, out, err = dinox("bench", "infer", DINO, other, *SMALL, *QUICK, "--dtype", "bf16")
    assert code == 0, err
    assert out.startswith("detection in bf16")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("dino/")] == [DINO, other]


def test_a_row_is_measured_in_a_process_of_its_own():
    row = measure_speed_apart(DINO, SMALL, Workload("infer", size=(64, 64), steps=1, warmup=0, threads=1))
    assert row.peak_bytes < 4e9 and row.threads == 1


def test_a_dataset_and_sizes_of_noise_exclude_each_other(dinox):
    code, _, err = dinox("bench", "step", DINO, "--data", "--batch", 2)
    assert code == 2 and "--batch is for images of noise" in err


def test_a_configs_own_data_is_a_phase_and_gives_the_batch_size(dinox, in_this_process, tmp_path):
    file = tmp_path / "step.json"
    code, out, err = dinox("bench", "step", TINY_DINO_CONFIG, "--data", *QUICK[3:], "--json", file)
    assert code == 0, err
    found = json.loads(file.read_text())
    (row,) = found["rows"]
    assert "the config's data" in out and row["columns"]["data"] > 0
    images = load_config(TINY_DINO_CONFIG).dataloader.train.total_batch_size
    assert row["images_per_second"] == pytest.approx(images * row["steps_per_second"])
    assert found["size"] is found["batch_size"] is found["objects"] is None


def test_a_benchmark_needs_a_config(dinox):
    code, _, err = dinox("bench", "step", "model.num_queries=3")
    assert code == 2 and "which config?" in err


def test_matching_prints_the_speed_up(dinox, tmp_path):
    file = tmp_path / "matching.json"
    arguments = ["--prediction-sets", 1, "--objects", 3, "--queries", 20, "--rounds", 1, "--device", "cpu"]
    code, out, err = dinox("bench", "matching", *arguments, "--json", file)
    assert code == 0, err
    assert [result["same_indices"] for result in json.loads(file.read_text())["results"]] == [True, True]
    assert "1 x 2 matrices of 20 queries x 3 objects" in out
