"""Commands out of README.md, so that what it tells users to type is what tests run."""

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def commands_under(heading: str, text: str) -> list[list[str]]:
    """The words of every ``dinox`` command in the plain fenced blocks between a heading and the next one of its rank.

    Blocks with a language (```python) are not commands. A backslash at the end of a line continues it.
    """
    commands, inside, fence = [], 0, None
    block: list[str] = []
    for line in text.splitlines():
        marks = re.match(r"(#+) (.+)", line) if fence is None else None
        if marks and (not inside or len(marks[1]) <= inside):
            inside = len(marks[1]) if marks[2].strip() == heading else 0
        if line.startswith("```"):
            if fence == "" and inside:
                joined = "\n".join(block).replace("\\\n", " ")
                commands += [shlex.split(row) for row in joined.splitlines() if row.startswith("dinox ")]
            fence = line.removeprefix("```").strip() if fence is None else None
            block = []
        elif fence is not None:
            block.append(line)
    return commands


def readme_commands(heading: str) -> list[list[str]]:
    """Those of README.md; skips the calling test where it has no such heading."""
    commands = commands_under(heading, README.read_text(encoding="utf-8"))
    if not commands:
        pytest.skip(f"README.md has no commands under {heading!r}")
    return commands
