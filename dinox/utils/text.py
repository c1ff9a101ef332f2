"""Long lists in messages: few words that say which ones they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

_LENGTH = 80

_WHOLE = 3
"""Tensors of a module from which on it is named as a whole."""

Pattern = tuple[str | tuple[str, ...], ...]
"""The parts of a dotted name; some of them stand for several."""


def shortened(items: Sequence[str], *, length: int = _LENGTH) -> str:
    """``a, b, c``; of what does not fit into ``length`` characters how many there are: ``a, b, ... (75 more)``."""
    text = ", ".join(items)
    if len(text) <= length:
        return text
    shown: list[str] = []
    for item in items:
        if shown and len(", ".join([*shown, item])) > length:
            break
        shown.append(item)
    left = len(items) - len(shown)
    return ", ".join(shown) + (f", ... ({left} more)" if left else "")


def compact_names(names: Iterable[str], *, among: Iterable[str] = ()) -> list[str]:
    """Names of tensors in few lines, as a shell would spell them: ``encoder.layers.{0..5}.norm1.{weight,bias}``.

    A module with at least three tensors, all of which are there, is ``encoder.*``. among: all tensors, for that.
    """
    names = list(dict.fromkeys(names))
    patterns: list[Pattern] = list(dict.fromkeys(_whole_modules(names, among)))
    longest = max(map(len, patterns), default=0)
    for position in range(-1, -longest - 1, -1):
        patterns = _merge(patterns, position)
    return [".".join(part if isinstance(part, str) else _braces(part) for part in pattern) for pattern in patterns]


def _whole_modules(names: Sequence[str], among: Iterable[str]) -> Iterable[Pattern]:
    here, everywhere = (Counter(_modules(each)) for each in (names, {*names, *among}))
    for name in names:
        module = next((m for m in _modules([name]) if here[m] == everywhere[m] >= _WHOLE), None)
        yield tuple(name.split(".")) if module is None else (*module, "*")


def _modules(names: Iterable[str]) -> Iterable[tuple[str, ...]]:
    """What each name is inside of, from the outside."""
    for name in names:
        parts = name.split(".")
        yield from (tuple(parts[:depth]) for depth in range(1, len(parts)))


def _merge(patterns: Sequence[Pattern], position: int) -> list[Pattern]:
    """Patterns that differ at this position alone become one: the last parts of names, and numbers."""
    merged: dict[tuple, list[str]] = {}
    for pattern in patterns:
        index = len(pattern) + position
        part = pattern[index] if index >= 0 else None
        mergeable = isinstance(part, str) and part != "*" and (position == -1 or part.isdigit())
        rest = (pattern[:index], pattern[index + 1 :]) if mergeable else (pattern, None)
        merged.setdefault(rest, []).append(part if mergeable else "")
    return [
        before if after is None else (*before, parts[0] if len(parts) == 1 else tuple(parts), *after)
        for (before, after), parts in merged.items()
    ]


def _braces(parts: Sequence[str]) -> str:
    if not all(part.isdigit() for part in parts):
        return f"{{{','.join(parts)}}}"
    ranges: list[list[int]] = []
    for number in sorted(map(int, parts)):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    if len(ranges) == 1 and len(ranges[0]) == 2:
        return f"{{{ranges[0][0]}..{ranges[0][1]}}}"
    return "{" + ",".join("..".join(map(str, each)) for each in ranges) + "}"
