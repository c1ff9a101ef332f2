"""How far a run is in its stream of training images, in numbers that workers, ranks and batches do not change.

The stream is that of all ranks together: rank r of W takes the images numbered r, r + W, r + 2 W, ... Images count when
they are trained on, not when a worker reads them ahead. Grouping by aspect ratio lets some wait until there are
enough of their kind; those are told by their numbers, so that a resumed run waits with the same ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.utils import comm

VISIT = "visit"
"""Key of a mapped image's number between a loader's workers and ``SkippingLoader``, which takes it off."""


@dataclass(frozen=True)
class Position:
    """All images whose numbers are below ``end`` were trained on, except ``waiting``."""

    end: int = 0
    waiting: frozenset[int] = frozenset()

    def is_done(self, number: int) -> bool:
        return number < self.end and number not in self.waiting

    @property
    def images(self) -> int:
        """That were trained on."""
        return self.end - len(self.waiting)

    def state_dict(self) -> dict[str, Any]:
        return {"end": self.end, "waiting": sorted(self.waiting)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Position":
        return cls(int(state["end"]), frozenset(state["waiting"]))

    @classmethod
    def of_all(cls, ranks: Sequence["Position"]) -> "Position":
        """Of the positions of all ranks, each of which knows its own images only. In order of the ranks."""
        end = max(rank.end for rank in ranks)
        waiting: set[int] = set()
        for number, rank in enumerate(ranks):
            waiting |= rank.waiting
            waiting |= set(range(_next_of_rank(rank.end, number, len(ranks)), end, len(ranks)))
        return cls(end, frozenset(waiting))


class PositionCounter:
    """Follows the batches of this rank.

    Args:
        start: of all ranks; what waits there and is not this rank's is left to the others.
    """

    def __init__(self, start: Position) -> None:
        self._rank, self._step = comm.get_rank(), comm.get_world_size()
        self._next = _next_of_rank(start.end, self._rank, self._step)
        self._waiting = {number for number in start.waiting if number % self._step == self._rank}

    def count(self, numbers: Iterable[int]) -> None:
        """``numbers``: of one batch. The greatest one is of the image that completed it."""
        numbers = set(numbers)
        end = max(numbers) + self._step
        self._waiting |= set(range(self._next, end, self._step))
        self._next = max(self._next, end)
        self._waiting -= numbers

    def position(self) -> Position:
        """Of this rank's images."""
        # The end is behind the last image of this rank, not the place of its next: that may be another rank's.
        return Position(max(self._next - self._step + 1, 0), frozenset(self._waiting))


def _next_of_rank(number: int, rank: int, ranks: int) -> int:
    """The first number from ``number`` on that is this rank's."""
    return number + (rank - number) % ranks
