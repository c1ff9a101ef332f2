import json

import pytest

from dinox.analysis.soak import MemorySample, SoakReport
from dinox.cli import bench_soak


@pytest.fixture
def growth(monkeypatch):
    """Set ["bytes"] of every step; ["asked"] is what the command wanted."""
    found = {"bytes": 0}

    def soak(config, overrides, *, on_sample, **settings):
        found["asked"] = {"config": config, "overrides": overrides, **settings}
        samples = [
            MemorySample(step, {"training": 5_000_000 + step * found["bytes"]}, {"training": 0}) for step in range(1, 7)
        ]
        for sample in samples:
            on_sample(sample)
        return SoakReport(config, tuple(overrides), settings["workers"], settings["from_step"], tuple(samples))

    monkeypatch.setattr(bench_soak, "soak", soak)
    return found


def test_memory_that_stays_is_success(dinox, growth, tmp_path):
    file = tmp_path / "soak.json"
    arguments = ["optimizer.lr=1e-4", "--steps", 6, "--from-step", 2, "--workers", 1, "--json", file]
    code, out, err = dinox("bench", "soak", *arguments)
    assert code == 0, err
    assert growth["asked"] == {
        "config": "dino/dino_demo",
        "overrides": ["optimizer.lr=1e-4"],
        "steps": 6,
        "from_step": 2,
        "workers": 1,
    }
    assert "below 1 MB per 100 steps" in out and "steps 2 to 6" in out
    slope = json.loads(file.read_text())["bytes_per_100_steps"]["total"]
    assert slope["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("limit", "code"), [(1.9, 1), (2.1, 0)])
def test_growth_above_the_limit_is_a_failure(dinox, growth, limit, code):
    growth["bytes"] = 20_000  # 2 MB in 100 steps
    found, out, _ = dinox("bench", "soak", "--limit", limit, "--from-step", 1)
    assert found == code and ("NOT BELOW" in out) == bool(code)


def test_one_config_at_a_time(dinox, growth):
    code, _, err = dinox("bench", "soak", "dino/dino_demo", "dino/dino_r50_4scale_12ep")
    assert code == 2 and "one config at a time" in err
