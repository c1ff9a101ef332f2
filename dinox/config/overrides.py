"""Overrides that a config cannot take by mistake.

LazyConfig takes every key and every value. Here a key has to exist, in the config or as an argument of the part it
belongs to, and a value has to be of the kind of the one it replaces.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from dinox.config.calls import TARGET, is_call, parameters, walk
from dinox.config.checks import check_calls
from dinox.config.errors import ConfigError, Source
from dinox.config.syntax import parse_value, split_override
from dinox.config.values import Node, check_interpolation, fit_value, shown, takes_text
from dinox.utils.suggest import closest, did_you_mean

_LISTED = 12
"""How many keys a message lists."""


def apply_overrides(cfg: DictConfig, overrides: Sequence[str], *, file: str = "config") -> DictConfig:
    """Change ``cfg`` in place by ``key=value`` texts, and return it.

    Keys are dotted, with list indices (``augmentations.0.prob`` or ``augmentations[0].prob``). An argument that a
    callable of the config takes may be set although the config does not spell it, and an empty mapping takes any key,
    or any mapping as a whole. Else a mapping as value (``train={max_iter: 10}``) sets the keys in it; one with a
    ``_target_`` replaces the whole part. ``null`` removes a part, or is the value of an argument that may be None.

    Raises ConfigError naming ``file`` and the override: wrong syntax, an unknown key (with a did-you-mean), or a value
    of another kind than expected (an int is taken for a float, and 1e4 for an int).
    """
    for text in overrides:
        source = Source(file, text)
        dotted, written = split_override(source)
        value = parse_value(source, dotted, written, is_text=_is_text(cfg, dotted))
        for key, member in _settings(cfg, dotted, value):
            _set(cfg, key, member, source)
    if overrides:
        check_calls(cfg, file=file)  # a new `_target_` may not take the arguments that were there
    return cfg


def _settings(cfg: DictConfig, dotted: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A mapping for one that has keys becomes one setting for each key in it. Keys of an open one may hold dots."""
    existing = OmegaConf.select(cfg, dotted, throw_on_resolution_failure=False)
    if isinstance(value, dict) and TARGET not in value and isinstance(existing, DictConfig) and len(existing) > 0:
        for key, member in value.items():
            yield from _settings(cfg, f"{dotted}.{key}", member)
    else:
        yield dotted, value


def _is_text(cfg: DictConfig, dotted: str) -> bool:
    """Whether the value of a key is text; no for a key that is not there."""
    parent, _, last = dotted.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_resolution_failure=False) if parent else cfg
    key = _existing_key(node, last) if isinstance(node, (DictConfig, ListConfig)) else None
    return key is not None and takes_text(node, key)


def _set(cfg: DictConfig, dotted: str, value: Any, source: Source) -> None:
    node, done = cfg, []
    *path, last = dotted.split(".")
    for position, part in enumerate(path):
        if _existing_key(node, part) is None:
            raise _unknown_key(node, done, [*path[position:], last], source, cfg)
        node = _descend(node, done, part, source)
        done.append(part)
    key = _existing_key(node, last)
    if key is None and not _may_add(node, last):
        raise _unknown_key(node, done, [last], source, cfg)
    key = last if key is None else key
    node[key] = fit_value(node, key, dotted, value, source)
    check_interpolation(node, key, dotted, source)


def _descend(node: Node, done: list[str], part: str, source: Source) -> Node:
    """The config below the key ``part`` of ``node``, whose own path is ``done``."""
    key = _existing_key(node, part)
    dotted = ".".join([*done, part])
    if isinstance(node, DictConfig) and key not in node:
        raise source.error(f"'{dotted}' is not spelt in the config: nothing below it can be set. Set it as a whole.")
    if OmegaConf.is_interpolation(node, key):
        origin = OmegaConf.to_container(node, resolve=False)[key]
        raise source.error(f"'{dotted}' is {origin!r}: it takes its value from there. Override that key instead.")
    child = node[key]
    if not isinstance(child, (DictConfig, ListConfig)):
        raise source.error(f"'{dotted}' is {shown(child)} and has no keys below it.")
    return child


def _existing_key(node: Node, part: str) -> str | int | None:
    """``part`` as a key of ``node``: it is there, or is an argument of the node's callable. None if it is neither."""
    if isinstance(node, ListConfig):
        return int(part) if part.isdecimal() and int(part) < len(node) else None
    return part if part in node or part in (parameters(node) or {}) else None


def _may_add(node: Node, part: str) -> bool:
    """Nothing is known to be wrong with a new key of an empty mapping, or of a callable that takes any.

    Of the latter, a key that is spelt almost as one that is there is held for a mistake.
    """
    if isinstance(node, ListConfig):
        return False
    if is_call(node):
        return parameters(node) is None and not closest(part, map(str, node))
    return len(node) == 0


def _unknown_key(node: Node, done: list[str], rest: list[str], source: Source, cfg: DictConfig) -> ConfigError:
    """The error for the path ``done`` + ``rest``, which ``node`` at ``done`` does not have."""
    where = f"'{'.'.join(done)}'" if done else "The config"
    if isinstance(node, ListConfig):
        return source.error(f"{where} is a list of {len(node)}: expected an index from 0, got {rest[0]!r}.")
    dotted, whole = ".".join([*done, rest[0]]), ".".join([*done, *rest])
    known = _all_keys(cfg)
    hint = did_you_mean(whole, known) or did_you_mean(dotted, known)
    if not hint:
        here = sorted({str(key) for key in node} | set(parameters(node) or {}))
        more = ", ..." if len(here) > _LISTED else ""
        hint = f" {where} has: {', '.join(here[:_LISTED])}{more}."
    return source.error(f"unknown key '{dotted}'.{hint}")


def _all_keys(cfg: DictConfig) -> set[str]:
    """Every dotted key one may have meant: those spelt in the config and the arguments of its LazyCalls."""
    keys = set()
    for key, value in walk(cfg):
        if not key.endswith(TARGET):
            keys.add(key)
        keys.update(f"{key}.{name}" for name in parameters(value) or {})
    return keys
