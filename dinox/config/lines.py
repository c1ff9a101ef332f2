"""Where a key of a .py config is written, for messages.

A config is a program that need not keep track of this; but nearly all of them are assignments and calls with keywords,
in one file or in those that it imports relatively, and there the line can be found in the text.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

_MAX_FILES = 50


def find_line(file: str | os.PathLike, key: str) -> str | None:
    """``file:line`` where a dotted key is set, or else the nearest key above it; None if nowhere.

    Of several lines that set a key of this name, the one that spells most of the whole key; the config's own file comes
    before those it imports.
    """
    while key:
        found = _find(file, key)
        if found is not None:
            return found
        key = key.rpartition(".")[0]
    return None


def _find(file: str | os.PathLike, key: str) -> str | None:
    *above, last = key.split(".")
    scored = [
        (len(set(names[:-1]) & set(above)), f"{path}:{line}")
        for path in _with_imports(Path(file))
        for names, line in _settings(path)
        if names[-1] == last
    ]
    best = max((score for score, _ in scored), default=0)
    places = [place for score, place in scored if score == best]
    # Several lines that share nothing with the key but its last part: any of them would be a guess.
    return places[0] if len(places) == 1 or (places and best > 0) else None


def _with_imports(file: Path) -> Iterator[Path]:
    """The file, and those that it imports by ``from ..folder.name import x``, and so on."""
    pending, seen = [file], set()
    while pending and len(seen) < _MAX_FILES:
        path = pending.pop(0)
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        yield path
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                folder = path.parents[node.level - 1]
                pending.append(folder.joinpath(*node.module.split(".")).with_suffix(".py"))


def _settings(path: Path) -> Iterator[tuple[list[str], int]]:
    """(names around a setting and its own, line) of ``a.b = 1``, ``a.update(b=1)``, ``a = f(b=1)``, ``{"b": 1}``."""

    def visit(node: ast.AST, around: list[str]) -> Iterator[tuple[list[str], int]]:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [_names(target) for target in targets]
            for found in filter(None, names):
                yield found, node.lineno
            around = names[0]
        elif isinstance(node, ast.keyword) and node.arg:
            around = [*around, node.arg]
            yield around, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            around = [*around, *_names(node.func.value)]
        elif isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values):
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield [*around, name.value], name.lineno
                    yield from visit(value, [*around, name.value])
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, around)

    yield from visit(_parse(path), [])


def _names(node: ast.AST) -> list[str]:
    """``a.b["c"]`` as [a, b, c]; as far as it is made of names."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_names(node.value), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return [*_names(node.value), str(node.slice.value)]
    return []


def _parse(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])
