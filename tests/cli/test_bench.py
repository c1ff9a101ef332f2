import json

import pytest
import torch

from dinox.analysis.operators import CASES, Case


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
