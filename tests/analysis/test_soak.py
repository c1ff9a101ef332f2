"""The command that is watched stands in for training: it writes metrics.json and takes memory, without a model."""

import sys
from pathlib import Path

import pytest

from dinox.analysis import soak as module
from dinox.analysis.soak import MemorySample, SoakReport, slope_per_100_steps, soak

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only on Linux")

SCRIPT = """
import json, os, sys, time
folder, steps, grows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
worker = os.fork()
if worker == 0:
    time.sleep(20)
    os._exit(0)
os.mkdir(f"{folder}/run")
held = []
with open(f"{folder}/run/metrics.json", "w") as file:
    for step in range(steps):
        held.append(b"1" * grows)
        file.write(json.dumps({"iteration": step}) + "\\n")
        file.flush()
        time.sleep(0.05)
os.kill(worker, 9)
sys.exit("out of data")
"""


def pretend(monkeypatch, *, written: int, grows: int) -> None:
    def command(config, overrides, steps, workers, folder):
        return [sys.executable, "-c", SCRIPT, folder, str(written), str(grows)]

    monkeypatch.setattr(module, "_command", command)


def values(report: SoakReport) -> dict[str, float]:
    return {name: slope.value for name, slope in report.slopes().items()}


def test_the_slope_is_of_100_steps():
    exact = slope_per_100_steps([100, 101, 102, 103], [7, 10, 13, 16])
    assert (exact.value, exact.error) == pytest.approx((300, 0))
    # By hand: the mean of x is 1, of y 2; (-1 (1 - 2) + 0 + 1 (5 - 2)) / 2 = 2. The line is at 0, 2, 4, the values
    # deviate by 1, -2, 1; the error is the root of 6 / (3 - 2) / 2.
    slope = slope_per_100_steps([0, 1, 2], [1, 0, 5])
    assert (slope.value, slope.error) == pytest.approx((200, 100 * 3**0.5))


def test_steps_before_the_first_that_counts_do_not():
    samples = [MemorySample(step, {"training": 1000 * min(step, 5)}, {"training": 500}) for step in range(1, 11)]
    report = SoakReport("config", (), 0, 5, tuple(samples))
    assert values(report) == pytest.approx({"training": 0, "total": 0, "own total": 0}, abs=1e-6)
    report = SoakReport("config", (), 0, 1, tuple(samples[:5]))
    assert values(report) == pytest.approx({"training": 1e5, "total": 1e5, "own total": 0}, abs=1e-6)


@linux
def test_growth_is_seen_in_the_process_that_grows(monkeypatch):
    """1 MB a step, 100 MB in 100 steps; allocators' rounding and the interpreter's own start are far from 30 %."""
    pretend(monkeypatch, written=100, grows=1_000_000)
    report = soak("any", steps=12, from_step=3)
    slopes = values(report)
    assert [sample.step for sample in report.samples][-1] >= 12
    assert slopes["training"] == pytest.approx(1e8, rel=0.3)
    assert abs(slopes["worker 1"]) < 1e6
    assert slopes["total"] == pytest.approx(slopes["training"] + slopes["worker 1"])
    assert list(slopes) == ["training", "worker 1", "total", "own total"]


@linux
def test_training_that_ends_too_early_is_told_with_its_last_words(monkeypatch):
    pretend(monkeypatch, written=2, grows=1)
    with pytest.raises(ValueError, match=r"ended before step 5, with exit code 1:\nout of data"):
        soak("any", steps=5, from_step=1)


@pytest.mark.parametrize("from_step", [0, 8])
def test_three_steps_are_needed_for_a_slope(from_step):
    with pytest.raises(ValueError, match=f"from_step: expected 1 to 7, .* got {from_step}"):
        soak("any", steps=9, from_step=from_step)
