import pytest
import torch

from dinox.analysis.speed import Workload, benchmark_matching, measure_speed, phase_columns, rows
from dinox.analysis.timing import PhaseTimes
from tests.small_models import DINO, small_overrides

OVERRIDES = small_overrides(DINO)


def workload(task="step", **settings) -> Workload:
    return Workload(task, **{"size": (64, 96), "steps": 1, "warmup": 0, **settings})


def test_a_training_step_is_split_into_phases_that_add_up():
    row = measure_speed(DINO, OVERRIDES, workload(batch_size=2))
    columns = phase_columns(row.phases)
    steps = ["backbone", "encoder", "queries", "decoder", "matching", "losses", "backward", "optimizer", "other"]
    assert list(columns) == steps
    assert sum(columns.values()) == pytest.approx(row.seconds)  # of a single step, which is its own median
    assert row.images_per_second == pytest.approx(2 * row.steps_per_second)
    assert row.peak_bytes > 1e8  # torch alone takes that


@pytest.mark.parametrize(("task", "recomputed"), [("step", {"encoder", "decoder"}), ("infer", set())])
def test_settings_of_the_training_loop_apply(task, recomputed, monkeypatch):
    built = []
    monkeypatch.setattr(rows, "profile_phases", lambda model, **_: built.append(model) or PhaseTimes({}, 1.0, 1))
    overrides = [
        "train.activation_checkpointing=[encoder,decoder]",
        "train.compile={enabled:true,parts:[decoder],backend:eager}",
    ]
    measure_speed(DINO, [*OVERRIDES, *overrides], workload(task))
    parts = dict(built[0].named_children())
    assert {name for name, part in parts.items() if any("forward" in vars(m) for m in part.modules())} == recomputed
    compiled = {name for name, part in parts.items() if any(m._compiled_call_impl for m in part.modules())}
    assert compiled == {"decoder"}


def test_settings_that_are_none_are_errors():
    with pytest.raises(ValueError, match="Did you mean 'encoder'"):
        measure_speed(DINO, [*OVERRIDES, "train.activation_checkpointing=[encodr]"], workload())


def test_detection_has_no_phases_of_training():
    row = measure_speed(DINO, OVERRIDES, workload("infer", dtype="bf16"))
    assert list(phase_columns(row.phases)) == ["backbone", "encoder", "queries", "decoder", "other"]


def test_columns_are_in_a_steps_order_and_unknown_phases_keep_their_names():
    phases = {"preprocessing": 1, "roi_heads": 2, "heads": 3, "decoder": 4, "data": 5, "between the parts": 6}
    assert list(phase_columns(phases).items()) == [("data", 5), ("decoder", 7), ("roi_heads", 2), ("other", 7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 64)}, "size: expected at least 1, got 0"),
        ({"threads": 0}, "threads: expected at least 1"),
        ({"objects": -1}, "objects: expected at least 0"),
        ({"dtype": "fp8"}, "dtype: expected one of fp32, bf16, fp16, got 'fp8'"),
    ],
)
def test_workloads_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        workload(**settings)


@pytest.mark.parametrize("correlated", [True, False])
def test_the_loop_and_the_matcher_give_the_same_indices(correlated):
    result = benchmark_matching(prediction_sets=2, objects=20, queries=100, rounds=1, correlated=correlated)
    assert result.same_indices
    assert result.speedup == result.loop.total / result.matcher.total > 0
    assert result.solving_speedup == result.loop.solving / result.matcher.solving > 0


def test_the_loop_is_what_the_matcher_is_compared_with(monkeypatch):
    """Were either wrong, the report would say so."""
    from dinox.analysis.speed import matching

    monkeypatch.setattr(matching, "match_layer_by_layer", lambda logits, boxes, targets: torch.zeros(1))
    assert not benchmark_matching(prediction_sets=1, objects=2, queries=9, rounds=1).same_indices
