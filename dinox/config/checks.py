"""Mistakes in a config that show before anything is built."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinox.config.calls import (
    ANY_KIND,
    TARGET,
    argument_choices,
    argument_kinds,
    call_target,
    is_call,
    names_beside,
    parameters,
    value_kind,
    walk,
)
from dinox.config.errors import ConfigError
from dinox.config.values import kind_names, shown
from dinox.utils.suggest import did_you_mean

_SCALARS = {"bool", "int", "float", "str"}


def check_calls(cfg: DictConfig, *, file: str, line_of: Callable[[str], str | None] = lambda key: None) -> None:
    """Check that each LazyCall of a config can be found, takes the arguments that are written there, and their values.

    LazyConfig notices none of it before the call, and what is set on a part that is overridden later is never noticed.
    Of the values, numbers, switches and texts are compared with the annotations, and texts with the choices of a
    ``Literal``; everything else is left to the callable.

    Args:
        cfg: a config, or a part of one.
        file: for messages, as long as ``line_of`` knows no better.
        line_of: dotted key -> ``file:line`` where it is set, or None.

    Raises ConfigError naming the place and the dotted key, with a did-you-mean.
    """
    for key, node in walk(cfg):
        if not is_call(node):
            continue
        target = call_target(node)
        if isinstance(node[TARGET], str) and target is None:
            place = line_of(f"{key}.{TARGET}") or file
            raise ConfigError(
                f"{place}: '{key}.{TARGET}': expected the dotted name of a callable, got {node[TARGET]!r}."
                f"{did_you_mean(node[TARGET], names_beside(node[TARGET]))}"
            )
        known = parameters(node)
        for name in node:
            if not isinstance(name, str):
                raise ConfigError(
                    f"{line_of(f'{key}.{name}') or file}: '{key}.{name}': expected the name of an argument of "
                    f"{_name(target)}, got {name!r}."
                )
            if name == TARGET or known is None:
                continue
            fault = f"unknown key '{key}.{name}': {_unknown(target, name, known)}" if name not in known else None
            fault = fault or _value_fault(node, name, f"{key}.{name}")
            if fault:
                raise ConfigError(f"{line_of(f'{key}.{name}') or file}: {fault}")


def _unknown(target: Any, name: str, known: Any) -> str:
    return f"{_name(target)} takes no argument {name!r}.{did_you_mean(name, known)} It takes: {', '.join(known)}."


def _value_fault(node: DictConfig, name: str, dotted: str) -> str | None:
    if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name):
        return None
    value, expected = node[name], argument_kinds(node, name)
    kind = value_kind(value)
    if expected is ANY_KIND or kind not in _SCALARS:
        return None
    if kind in expected:
        choices = argument_choices(node, name)
        if choices is None or value in choices:
            return None
        hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        return f"'{dotted}': expected one of {', '.join(map(repr, choices))}, got {shown(value)}.{hint}"
    if "object" in expected or (kind == "int" and "float" in expected):
        return None
    return f"'{dotted}': expected {kind_names(expected)}, got {shown(value)} ({kind_names(frozenset({kind}))})."


def _name(target: Callable) -> str:
    return getattr(target, "__qualname__", repr(target))
