"""Probabilistic anchor assignment: its mixture against a plain one, and its choice against a loop over objects."""

import math
import statistics

import pytest
import torch

from dinox.matching import assign_paa
from dinox.matching.paa import fit_mixture, select_by_mixture


def density(x: float, mean: float, variance: float, weight: float) -> float:
    return weight * math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def slow_mixture(values: list) -> list:
    """[(mean, variance, weight)] of two normal distributions, by the textbook."""
    parts, before = [(min(values), 1.0, 0.5), (max(values), 1.0, 0.5)], -math.inf
    for _ in range(100):
        joint = [[density(x, *part) for part in parts] for x in values]
        parts = []
        for k in range(2):
            share = [row[k] / sum(row) for row in joint]
            mean = sum(s * x for s, x in zip(share, values)) / sum(share)
            variance = sum(s * (x - mean) ** 2 for s, x in zip(share, values)) / sum(share) + 1e-6
            parts.append((mean, variance, sum(share) / len(values)))
        likelihood = statistics.mean(math.log(sum(row)) for row in joint)
        if abs(likelihood - before) < 1e-3:
            break
        before = likelihood
    return parts


def slow_choice(values: list) -> list:
    """Of values in rising order: which stay positive."""
    if len(values) < 2:
        return [False] * len(values)
    parts = slow_mixture(values)
    joint = [[density(x, *part) for part in parts] for x in values]
    low = [i for i, row in enumerate(joint) if row[0] >= row[1]]
    last = max(low, key=lambda i: sum(joint[i]), default=-1)
    return [i in low and i <= last for i in range(len(values))]


def make_losses(*, rows: int, seed: int) -> list[list[float]]:
    """Two heaps each, of 1 to 20 values."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 20, (rows,), generator=generator).tolist()
    heaps = [torch.where(torch.rand(n, generator=generator) < 0.4, 0.8, 2.5) for n in counts]
    return [sorted((h + 0.4 * torch.randn(len(h), generator=generator)).tolist()) for h in heaps]


def as_rows(values: list[list[float]]) -> torch.Tensor:
    width = max(map(len, values))
    return torch.tensor([[*row, *[math.inf] * (width - len(row))] for row in values], dtype=torch.float64)


def test_every_row_gets_the_mixture_that_it_would_get_alone():
    """float64 in both; up to 100 steps of rounding: 1e-9."""
    values = [row for row in make_losses(rows=30, seed=0) if len(row) > 1]
    mixture = fit_mixture(as_rows(values))
    found = torch.stack([mixture.means, mixture.variances, mixture.weights], dim=-1)  # (M, 2, 3)
    expected = torch.tensor([slow_mixture(row) for row in values], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_choice_is_that_of_a_plain_mixture():
    values = make_losses(rows=60, seed=1)
    chosen = select_by_mixture(as_rows(values))
    for row, expected in zip(chosen.tolist(), map(slow_choice, values), strict=True):
        assert row[: len(expected)] == expected and not any(row[len(expected) :])
    assert chosen.any() and any(len(row) == 1 for row in values)


def test_losses_of_one_value_make_no_nan():
    assert select_by_mixture(torch.ones(1, 5)).any()
    assert not select_by_mixture(torch.full((2, 5), math.inf)).any()


@pytest.mark.parametrize("top_k", [2, 9])
def test_the_best_candidates_of_every_level_are_taken(top_k):
    """Three objects on two levels, the last one without candidates."""
    generator = torch.Generator().manual_seed(3)
    candidates = torch.randint(-2, 2, (120,), generator=generator)
    losses = torch.rand(120, generator=generator) * 3
    expected = [-1] * 120
    for index in range(3):
        chosen = []
        for level in (range(80), range(80, 120)):
            own = [i for i in level if candidates[i] == index]
            chosen += sorted(own, key=lambda i: losses[i])[:top_k]
        chosen.sort(key=lambda i: losses[i])
        for i, positive in zip(chosen, slow_choice([losses[i].item() for i in chosen]), strict=True):
            expected[i] = index if positive else -1
    assert assign_paa(candidates, losses, [80, 40], 3, top_k=top_k).tolist() == expected
    assert {-1, 0, 1} == set(expected)


def test_an_object_with_one_candidate_and_an_image_without_objects_get_no_positives():
    one = torch.tensor([-1, 0, -1, -1])
    assert assign_paa(one, torch.ones(4), [2, 2], 1).eq(-1).all()
    assert assign_paa(torch.full((4,), -1), torch.ones(4), [2, 2], 0).eq(-1).all()
