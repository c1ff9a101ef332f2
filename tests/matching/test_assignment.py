"""All comparisons are exact: the solver promises scipy's own indices, not only an assignment of equal cost."""

import os
import signal
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dinox.matching import assignment
from dinox.matching.assignment import (
    is_only_best,
    queries_that_matter,
    queries_that_may_matter,
    solve_assignment,
    solve_assignments,
)


def scipys(cost: np.ndarray, repeats: int = 1) -> np.ndarray:
    """Straight from scipy, all queries in it."""
    expected = np.full(len(cost), -1)
    queries, columns = linear_sum_assignment(np.tile(cost, repeats))
    expected[queries] = columns % max(cost.shape[1], 1)
    return expected


def correlated(random, queries: int, objects: int, spread: float = 0.3) -> np.ndarray:
    """Objects mostly want the same queries, as those of detectors do."""
    cost = 3 * random.normal(size=(queries, 1)) + spread * random.normal(size=(queries, objects))
    return cost.astype(np.float32)


def watch_scipy(monkeypatch, shapes: list) -> None:
    """Collects the shapes of all problems that scipy is given."""

    def solve(cost):
        shapes.append(cost.shape)
        return linear_sum_assignment(cost)

    monkeypatch.setattr(assignment, "linear_sum_assignment", solve)


KINDS = {
    "random": lambda random, n, m: random.random((n, m)).astype(np.float32),
    "correlated": correlated,
    "float64": lambda random, n, m: correlated(random, n, m).astype(np.float64),
    "nearly the same for all objects": lambda random, n, m: correlated(random, n, m, spread=1e-6),
    "few values, so that many assignments tie": lambda random, n, m: random.integers(0, 4, (n, m)).astype(np.float32),
    "tied and correlated": lambda random, n, m: np.round(2 * correlated(random, n, m)) / 2,
    "every query twice": lambda random, n, m: np.repeat(correlated(random, (n + 1) // 2, m), 2, axis=0)[:n],
    "every object twice": lambda random, n, m: np.repeat(correlated(random, n, (m + 1) // 2), 2, axis=1)[:, :m],
    "queries differ, objects do not": lambda random, n, m: np.tile(correlated(random, n, 1), m),
    "all the same": lambda random, n, m: np.full((n, m), 0.5, np.float32),
    "of very different sizes": lambda random, n, m: correlated(random, n, m) * np.float32(10) ** random.integers(-6, 6),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeats", [1, 2, 6])
def test_the_indices_are_scipys(kind, repeats):
    random = np.random.default_rng(0)
    for queries, objects in ((150, 20), (90, 13), (60, 5), (40, 39), (40, 40), (30, 50), (20, 0)):
        cost = KINDS[kind](random, queries, objects)
        assert np.array_equal(solve_assignment(cost, repeats), scipys(cost, repeats)), (queries, objects)


def test_costs_without_ties_are_solved_on_few_queries(monkeypatch):
    """Else the equality above would show nothing."""
    cost, solved = correlated(np.random.default_rng(0), 900, 50), []
    watch_scipy(monkeypatch, solved)
    solve_assignment(cost)
    assert len(solved) == 1 and solved[0][1] < 150


def test_ties_are_left_to_scipy_with_all_queries(monkeypatch):
    cost, solved = np.repeat(correlated(np.random.default_rng(0), 450, 50), 2, axis=0), []
    watch_scipy(monkeypatch, solved)
    solve_assignment(cost)
    assert solved[-1] == (50, 900)


def test_where_objects_want_different_queries_scipy_gets_all_at_once(monkeypatch):
    cost, solved = KINDS["random"](np.random.default_rng(0), 900, 50), []
    watch_scipy(monkeypatch, solved)
    solve_assignment(cost)
    assert solved == [(50, 900)]


def test_queries_that_matter_are_each_objects_cheapest_and_what_costs_as_little():
    cost = np.array([[0, 9], [1, 8], [2, 7], [2, 6], [3, 5], [9, 6]], dtype=np.float32)
    # Two columns: 0 and 1 for the first object; for the second the 5, and both queries that cost 6.
    assert queries_that_matter(cost, 2).tolist() == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_columns", [20, 40])
def test_a_glance_misses_no_query_that_matters(kind, num_columns):
    cost = KINDS[kind](np.random.default_rng(0), 150, 20)
    assert set(queries_that_matter(cost, num_columns)) <= set(queries_that_may_matter(cost, num_columns))


@pytest.mark.parametrize("repeats", [1, 2])
def test_only_best_is_what_trying_all_assignments_says(repeats):
    """Whole-number costs, so that about half of the problems have several best assignments."""
    random, answers = np.random.default_rng(0), []
    for _ in range(60):
        cost = random.integers(0, 8, (5, 2)).astype(np.float64)
        columns = [0, 1] * repeats + [-1] * (5 - 2 * repeats)
        totals = {}
        for given in set(permutations(columns)):
            totals[given] = sum(cost[query, column] for query, column in enumerate(given) if column >= 0)
        best = [given for given, total in totals.items() if total == min(totals.values())]
        answers.append(len(best) == 1)
        assert is_only_best(cost, np.array(best[0])) == answers[-1], cost
    assert 10 < sum(answers) < 50


def test_problems_that_are_not_finite_are_told_apart():
    random = np.random.default_rng(0)
    problems = [(correlated(random, 50, m), 1) for m in (20, 20, 3, 3)]
    problems[1][0][4, 7], problems[2][0][0, 0] = np.nan, np.inf
    found = solve_assignments(iter(problems))
    assert [each is None for each in found] == [False, True, True, False]
    assert np.array_equal(found[0], scipys(problems[0][0]))


def test_problems_solved_together_are_each_solved_as_alone():
    """Few and many objects, costs with and without ties, which are begun anew while others are checked."""
    random = np.random.default_rng(0)
    problems = [(make(random, 150, m), times) for make in KINDS.values() for m in (3, 20) for times in (1, 3)]
    for found, problem in zip(solve_assignments(iter(problems)), problems, strict=True):
        assert np.array_equal(found, scipys(*problem))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_process_solves_too():
    """Its parent's threads are not in it; waiting for them would take for ever."""
    problem = (correlated(np.random.default_rng(0), 100, 20), 1)
    solve_assignments([problem])
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        found = solve_assignments([problem])[0]
        os._exit(0 if np.array_equal(found, scipys(*problem)) else 1)
    assert os.waitpid(child, 0)[1] == 0
