"""What can be wrong with a dataset: one kind of mistake, with everything that has it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "evaluation", "left out", "note"]
SEVERITIES: dict[Severity, str] = {
    "error": "training and evaluation stop",
    "evaluation": "evaluation stops",
    "left out": "training goes on without them, and counts them",
    "note": "no mistakes, but good to know",
}
"""From the worst to the least; what follows from each."""

LISTED = 10
"""How many ids a message lists; the total follows."""


@dataclass(frozen=True)
class Place:
    """One entry of a dataset that has a problem.

    id: of the image, annotation or category; "#3" is the fourth of them, without an id. detail: what was found there.
    file: the image's path, where there is one.
    """

    id: Any
    detail: str = ""
    file: str = ""


@dataclass(frozen=True)
class Problem:
    """One kind of mistake, with everything that has it.

    kind: a stable short name. where: "annotation", "image", "category" or "dataset", whose ids the places have. text:
    what was expected and what was found at the first place. cure: what to do.
    """

    kind: str
    severity: Severity
    where: str
    text: str
    places: tuple[Place, ...]
    cure: str

    def __str__(self) -> str:
        plural = "s" if len(self.places) > 1 else ""
        ids = f"(first of {len(self.places)} {self.where}{plural}: id{plural} {self.listed_ids()})"
        return f"{self.text} {ids}. {self.cure}"

    def listed_ids(self) -> str:
        return listed((place.id for place in self.places), total=len(self.places))


def mismatch(field: str, expected: str, got: str) -> str:
    """The text of a problem with one field."""
    return f"'{field}': expected {expected}, got {got}"


def listed(items: Iterable[Any], *, total: int) -> str:
    """The first ten, and how many there are if there are more."""
    first = [str(item) for item, _ in zip(items, range(LISTED))]
    return ", ".join(first) + (f", ... ({total} in all)" if total > LISTED else "")


def shown(value: Any) -> str:
    """A value of a json in a message."""
    if isinstance(value, (dict, list)) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, str) and len(value) > 200:
        return f"{value[:200]!r}..."
    return "null" if value is None else repr(value)
