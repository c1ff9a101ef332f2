"""SLURM's short ways of writing lists: of nodes, and of the tasks on each of them."""

import re

_NODES = re.compile(r"[^,\[\]]*(?:\[[^\[\]]*\][^,\[\]]*)*")
"""One entry of a list: text and brackets by turns. Commas in brackets belong to it."""

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_nodes(text: str) -> list[str]:
    """``node[001-003,007],gpu3`` -> node001, node002, node003, node007, gpu3, in the order of the list.

    Several brackets in one name, as ``rack[1-2]n[0-1]``, give all combinations, the last one changing fastest. Raises
    ValueError for what is no such list.
    """
    names, rest = [], text.strip()
    while rest:
        entry = _NODES.match(rest)[0]
        names += _expand_entry(entry.strip(), text)
        rest = rest[len(entry) :]
        if rest and not (rest.startswith(",") and rest[1:].strip()):
            raise _not_a_list(text)
        rest = rest[1:]
    if not names:
        raise _not_a_list(text)
    return names


def _expand_entry(entry: str, text: str) -> list[str]:
    if not entry or any(character.isspace() for character in entry):
        raise _not_a_list(text)
    names = [""]
    for i, piece in enumerate(_BRACKETS.split(entry)):  # texts, and between them what is in brackets
        pieces = _expand_ranges(piece, text) if i % 2 else [piece]
        names = [name + each for name in names for each in pieces]
    return names


def _expand_ranges(ranges: str, text: str) -> list[str]:
    """``001-003,007``: numbers keep their leading zeros."""
    numbers = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise _not_a_list(text)
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise _not_a_list(text)
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def expand_task_counts(text: str) -> list[int]:
    """``4(x2),1`` -> 4, 4, 1: the tasks on each node. Raises ValueError for what is no such list."""
    counts = []
    for part in text.split(","):
        match = _TASKS.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"expected numbers of tasks such as '4(x2),1', got {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _not_a_list(text: str) -> ValueError:
    return ValueError(f"expected a list of nodes such as 'node[001-004,007],gpu3', got {text!r}")
