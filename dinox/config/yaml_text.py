"""Yaml as plain values, read without running anything, with the line of every key."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dinox.config.errors import ConfigError

MAX_NODES = 100_000
"""Keys and values of a config, anchors written out. The largest config of the zoo has some 300; a few lines of nested
anchors can stand for billions."""

MAX_DEPTH = 60


@dataclass(frozen=True)
class YamlText:
    """content: dicts, lists and plain values. lines: dotted key -> line, from 1."""

    content: dict[Any, Any]
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """The safe one, for which 1e-4 is a number. (To yaml 1.1 it is text; configs are full of such numbers.)"""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # `!!bool x` is a KeyError, `!!timestamp x` an AttributeError, 2020-13-41 ...
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            raise _Unreadable(problem=f"expected a {tag}, got {node.value!r}", problem_mark=node.start_mark) from error


class _Unreadable(yaml.MarkedYAMLError):
    """A value that is not what its tag says, or looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, *, origin: str) -> YamlText:
    """Parse yaml. ``origin`` is what messages call it: the file, or the checkpoint it was found in.

    Raises ConfigError naming origin and line: no yaml, a tag that could run code, a key given twice, no mapping at the
    top, or more than ``MAX_NODES`` values.
    """
    if "\0" in text:
        raise ConfigError(f"Config {origin}: not valid yaml: it holds NUL bytes; is it damaged?")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        lines = {} if root is None else dict(_lines_of(root, origin))
        content = None if root is None else loader.construct_document(root)
    except yaml.constructor.ConstructorError as error:
        where = f"Config {origin}:{error.problem_mark.line + 1}"
        if "could not determine a constructor" not in error.problem:  # a list as a key, ...
            raise ConfigError(f"{where}: not valid yaml: {error.problem}") from error
        raise ConfigError(
            f"{where}: {error.problem}. A yaml config may hold plain values only; this tag could run code and is "
            f"refused. Write a .py config if you need objects."
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"Config {origin}{line}: not valid yaml: {error.problem}") from error
    except yaml.YAMLError as error:  # characters that no yaml may hold
        raise ConfigError(f"Config {origin}: not valid yaml: {error}") from error
    except RecursionError:
        raise _too_large(origin) from None
    if not isinstance(content, dict):
        got = "nothing: the file is empty" if content is None else type(content).__name__
        raise ConfigError(f"Config {origin}: expected a mapping at the top, got {got}.")
    return YamlText(content, lines)


def _lines_of(root: yaml.Node, origin: str) -> Iterator[tuple[str, int]]:
    """(dotted key, line) of everything in a document, before anything is made of it."""
    pending, count = [("", root, 0)], 0
    while pending:
        prefix, node, depth = pending.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise _too_large(origin)
        if prefix:
            yield prefix, node.start_mark.line + 1
        for key, child in _children(node, origin):
            pending.append((f"{prefix}.{key}" if prefix else key, child, depth + 1))


def _children(node: yaml.Node, origin: str) -> list[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.SequenceNode):
        return [(str(index), child) for index, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return []
    found: dict[str, yaml.Node] = {}
    for key, child in node.value:
        name = str(key.value)
        if name in found and name != "<<":
            raise ConfigError(
                f"Config {origin}:{key.start_mark.line + 1}: the key {name!r} is given twice, before in line "
                f"{found[name].start_mark.line + 1}. Keep one of them."
            )
        found[name] = child
    return list(found.items())


def _too_large(origin: str) -> ConfigError:
    return ConfigError(
        f"Config {origin}: more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH}, anchors written out. It is "
        f"refused: no config is that large."
    )
