"""The least total cost of giving every object its own queries: scipy's solver, on few enough queries.

Objects mostly want the same queries, and on such costs scipy's time grows with the number of queries that it has to
weigh for every object. Nearly all of them are in no best assignment, which is known before solving. **Which queries can
matter.** Let C be the number of columns: M objects, each ``repeats`` times. An assignment that gives column j a query q
dearer to j than its C-th cheapest one is never the best: at least C queries are cheaper for j, the other columns hold
at most C - 1 of them, and with a free one in q's place the total falls. So only queries that are among the C cheapest
of some column (with all that cost as much as its C-th) can be matched, and leaving out the others changes neither the
least total nor the set of assignments that reach it.

**Ties.** Where one assignment alone is the best, every solver finds it. Where several are, scipy's choice depends on
the order in which it meets the queries, the left out ones included; so those are left to scipy with all queries. Which
of the two it is, the solution tells. Let an edge j -> k weigh what is paid for handing a query of object j to object k,
with one node more that stands for the queries that nobody has. Two assignments differ by cycles in this graph, so that
one is the only best exactly if every cycle weighs more than 0. With shortest distances d from anywhere, each cycle
weighs what its edges' w + d[j] - d[k] add up to, none of which is negative; if the edges at 0 (here: below what
rounding can do) contain no cycle, no cycle weighs 0.

Legend: N queries, M objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from dinox.structures import BACKGROUND

_FEWEST_COLUMNS = 12  # with fewer there is too little to win
_MOST_NEAR = 3 / 4  # share of the queries that may matter, above which finding out does not pay
_MOST_THREADS = 8
_ROUNDING = 1e-9  # of the largest cost: sums of float64 are far closer, costs that differ in float32 far apart


def solve_assignments(problems: Iterable[tuple[np.ndarray, int]]) -> list[np.ndarray | None]:
    """:func:`solve_assignment` of every (cost, repeats), None where a cost is not finite.

    scipy's solver runs in threads, where it needs nothing of Python's; all else is many small steps of numpy, which
    would be in each other's way there.
    """
    begun = [_begin(cost, repeats) if np.isfinite(cost).all() else None for cost, repeats in problems]
    checked = [each and _check(each) for each in begun]  # where it failed, scipy is at work again
    return [each and each.target_index() for each in checked]


def solve_assignment(cost: np.ndarray, repeats: int = 1) -> np.ndarray:
    """(N, M) finite costs -> (N,) int64, the object of every query or -1: those of ``linear_sum_assignment`` on
    ``np.tile(cost, repeats)``, in a fraction of the time. With more columns than queries, all queries are matched.
    """
    return _check(_begin(cost, repeats)).target_index()


@dataclass(frozen=True)
class _Solving:
    """A problem that scipy is at work on. cost: (N, M). kept: (n,) the queries that scipy sees, None = all."""

    cost: np.ndarray
    repeats: int
    kept: np.ndarray | None
    found: np.ndarray | Future

    def target_index(self) -> np.ndarray:
        """(N,), when scipy is done."""
        found = self.of_kept()
        if self.kept is None:
            return found
        target_index = np.full(len(self.cost), BACKGROUND)
        target_index[self.kept] = found
        return target_index

    def of_kept(self) -> np.ndarray:
        """(n,), when scipy is done."""
        return self.found.result() if isinstance(self.found, Future) else self.found


def _begin(cost: np.ndarray, repeats: int) -> _Solving:
    num_queries, num_columns = len(cost), cost.shape[1] * repeats
    if num_columns < _FEWEST_COLUMNS:  # solved before a thread would have begun
        return _Solving(cost, repeats, None, _solve(cost, repeats))
    if num_columns < num_queries:
        near = queries_that_may_matter(cost, num_columns)
        if len(near) <= _MOST_NEAR * num_queries:
            kept = near[queries_that_matter(cost[near], num_columns)]
            return _Solving(cost, repeats, kept, _threads().submit(_solve, cost[kept], repeats))
    return _begin_with_all(cost, repeats)


def _begin_with_all(cost: np.ndarray, repeats: int) -> _Solving:
    return _Solving(cost, repeats, None, _threads().submit(_solve, cost, repeats))


def _check(solving: _Solving) -> _Solving:
    """Begins anew with all queries where another assignment may cost as little."""
    cost, kept = solving.cost, solving.kept
    if kept is None or is_only_best(cost[kept].astype(np.float64), solving.of_kept()):
        return solving
    return _begin_with_all(cost, solving.repeats)


def queries_that_may_matter(cost: np.ndarray, num_columns: int) -> np.ndarray:
    """Indices, ascending, of queries among which are all that matter, at a glance.

    An object's C cheapest queries are no dearer to it than its dearest of *any* C queries; here, of those that are
    cheap for all objects together.
    """
    some = np.argpartition(cost.sum(axis=1), num_columns - 1)[:num_columns]
    limits = cost[some].max(axis=0) + _rounding(cost)
    return np.flatnonzero((cost <= limits).any(axis=1))


def queries_that_matter(cost: np.ndarray, num_columns: int) -> np.ndarray:
    """Indices, ascending, of the queries that are among the ``num_columns`` cheapest of some object."""
    by_object = np.ascontiguousarray(cost.T)  # (M, N)
    limits = np.partition(by_object, num_columns - 1, axis=1)[:, num_columns - 1]
    limits += _rounding(cost)
    return np.flatnonzero((by_object <= limits[:, None]).any(axis=0))


def is_only_best(cost: np.ndarray, target_index: np.ndarray) -> bool:
    """Whether no other assignment of (N,) queries to objects costs as little as this best one, rounding aside.

    cost: (N, M) float64. Some queries have no object, and every object has equally many. Copies of an object count as
    the same.
    """
    weights = _exchange_costs(cost, target_index)
    distances, steps = _shortest_distances(weights)
    tight = weights + distances[:, None] - distances <= _rounding(cost)
    np.fill_diagonal(tight, False)
    only_forwards = not (tight & (steps[:, None] >= steps)).any()  # as are those of the shortest paths themselves
    return only_forwards or _has_no_cycle(tight)


def _shortest_distances(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From anywhere to each of V nodes, and in which step they were found: (V,), (V,). weights: (V, V), 0 on the
    diagonal (Bellman and Ford: as many steps as the longest of the shortest paths has edges).
    """
    distances, steps = np.zeros(len(weights)), np.zeros(len(weights), dtype=np.int64)
    through = np.empty_like(weights)
    for step in range(1, len(weights) + 1):
        shortest = np.add(weights, distances[:, None], out=through).min(axis=0)
        shorter = shortest < distances
        if not shorter.any():
            break
        steps[shorter] = step
        distances = shortest
    return distances, steps


def _exchange_costs(cost: np.ndarray, target_index: np.ndarray) -> np.ndarray:
    """(M + 1, M + 1): what it costs at least to hand one of the row's queries to the column; last are those of nobody.
    0 on the diagonal.
    """
    num_objects = cost.shape[1]
    matched = np.flatnonzero(target_index != BACKGROUND)
    matched = matched[np.argsort(target_index[matched], kind="stable")].reshape(num_objects, -1)  # (M, repeats)
    now = np.take_along_axis(cost[matched], np.arange(num_objects)[:, None, None], axis=2)  # (M, repeats, 1)
    weights = np.zeros((num_objects + 1, num_objects + 1))
    weights[:-1, :-1] = (cost[matched] - now).min(axis=1)
    weights[:-1, -1] = -now[..., 0].max(axis=1)
    weights[-1, :-1] = cost[target_index == BACKGROUND].min(axis=0, initial=np.inf)
    np.fill_diagonal(weights, 0.0)
    return weights


def _rounding(cost: np.ndarray) -> float:
    return _ROUNDING * max(1.0, float(np.abs(cost).max()))


def _has_no_cycle(edges: np.ndarray) -> bool:
    """edges: (V, V) bool. Nodes that no edge leads to are on no cycle; without them, others are such nodes."""
    left = np.ones(len(edges), dtype=bool)
    while left.any():
        on_a_path = left & edges[left].any(axis=0)
        if on_a_path.sum() == left.sum():
            return False
        left = on_a_path
    return True


def _solve(cost: np.ndarray, repeats: int) -> np.ndarray:
    target_index = np.full(len(cost), BACKGROUND)
    columns, queries = _solve_by_column(cost.T, repeats)
    target_index[queries] = columns % max(cost.shape[1], 1)
    return target_index


def _solve_by_column(by_object: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """by_object: (M, N) -> the matched columns of ``repeats`` times M, and their queries."""
    by_column = np.tile(by_object, (repeats, 1))
    if by_column.shape[0] < by_column.shape[1]:
        return linear_sum_assignment(by_column)  # what scipy makes of more rows than columns
    queries, columns = linear_sum_assignment(by_column.T)
    return columns, queries


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), thread_name_prefix="matching")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has none of its parent's threads
