import pytest
import torch
from torch import nn

from dinox.analysis import Repetitions, profile_phases, timing
from tests.small_models import build_small, make_input

QUICK = Repetitions(warmup=1, fewest=1, most=2, budget=0)
INPUTS = [make_input(64, 64, 2)]
PARTS = {"backbone", "memory_builder", "encoder", "query_selection", "query_groups", "decoder", "heads"}


class Clock:
    now = 0.0

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but for what the model below takes."""
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


class Waiting(nn.Module):
    """Two parts that take a known time, and work of its own around them."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.short, self.long = Wait(clock, 1), Wait(clock, 3)

    def forward(self, inputs):
        self.clock.advance(2)
        x = self.long(torch.ones(1))
        self.clock.advance(0.25)
        x = self.short(x)
        self.clock.advance(0.5)
        return {"loss": x.sum()} if self.training else [{"instances": x}]


class Wait(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.weight = clock, seconds, nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.clock.advance(self.seconds)
        return x * self.weight


def test_each_phase_gets_its_time(clock):
    times = profile_phases(Waiting(clock), INPUTS, repetitions=QUICK)
    expected = {"preprocessing": 2, "long": 3, "between the parts": 0.25, "short": 1, "postprocessing": 0.5}
    assert times.seconds == expected
    assert times.total == 6.75


def test_phases_of_detection():
    times = profile_phases(build_small(), INPUTS, repetitions=QUICK)
    assert PARTS | {"preprocessing", "between the parts", "postprocessing"} == times.seconds.keys()
    assert times.peak_bytes is None or torch.cuda.is_available()


def test_phases_of_a_training_step():
    model = build_small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    times = profile_phases(model, INPUTS, optimizer=optimizer, repetitions=QUICK)
    others = {"preprocessing", "matching", "criterion", "between the parts", "backward", "optimizer step"}
    assert PARTS | others == times.seconds.keys()
    assert list(times.seconds)[-2:] == ["backward", "optimizer step"]
    assert all(seconds > 0 for seconds in times.seconds.values())


def test_waiting_for_a_loader_is_a_phase_and_a_short_one_begins_again(clock):
    class Loader:
        def __iter__(self):
            clock.advance(7)
            yield INPUTS

    times = profile_phases(Waiting(clock), loader=Loader(), repetitions=QUICK)
    assert (times.seconds["data"], times.seconds["preprocessing"]) == (7, 2)
    assert times.total == 6.75 + 7


def test_one_of_inputs_and_loader_is_needed():
    for neither_or_both in ({}, {"inputs": INPUTS, "loader": [INPUTS]}):
        with pytest.raises(ValueError, match="either inputs or a loader"):
            profile_phases(nn.Linear(1, 1), **neither_or_both)
    with pytest.raises(ValueError, match="no batches"):
        profile_phases(nn.Linear(1, 1), loader=[], repetitions=QUICK)


def test_the_matcher_is_left_as_it_was():
    model = build_small()
    matcher = model.criterion.matcher
    profile_phases(model, INPUTS, optimizer=torch.optim.SGD(model.parameters(), lr=1e-3), repetitions=QUICK)
    assert model.criterion.matcher is matcher


def test_phases_add_up_to_one_run():
    times = profile_phases(build_small(), INPUTS, repetitions=Repetitions(warmup=1, fewest=1, most=1))
    assert times.runs == 1
    assert sum(times.seconds.values()) == pytest.approx(times.total)


def test_times_are_medians(clock):
    model = Waiting(clock)
    durations = iter([50, 3, 40, 4])  # the first is of the run to warm up
    model.long.register_forward_pre_hook(lambda module, args: setattr(module, "seconds", next(durations)))
    times = profile_phases(model, INPUTS, repetitions=Repetitions(warmup=1, fewest=3, most=3))
    assert times.seconds["long"] == 4 and times.runs == 3


def test_a_training_step_steps_and_detection_does_not(clock):
    model = Waiting(clock)
    profile_phases(model, INPUTS, repetitions=QUICK)
    assert model.long.weight.item() == 1
    times = profile_phases(model, INPUTS, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), repetitions=QUICK)
    assert model.long.weight.item() != 1
    assert times.seconds["between the parts"] == 0.75  # in training nothing is postprocessed


def test_the_budget_ends_the_repetitions_but_not_before_the_fewest(clock):
    slow = Repetitions(warmup=5, fewest=2, most=100, budget=1)
    assert profile_phases(Waiting(clock), INPUTS, repetitions=slow).runs == 2
    assert clock.now == 3 * 6.75


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(clock, training):
    model = Waiting(clock).train(training)
    profile_phases(model, INPUTS, repetitions=QUICK)
    profile_phases(model, INPUTS, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), repetitions=QUICK)
    assert model.training == training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
