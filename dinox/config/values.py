"""Does a value fit the place where an override puts it?"""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinox.config.calls import ANY_KIND, TARGET, argument_kinds, locate_target, parameters, value_kind
from dinox.config.errors import Source

Node = DictConfig | ListConfig

_KIND_NAMES = {
    "bool": "true/false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "object": "a part ({_target_: ...})",
    "null": "None",
}

_ELEMENT_NAMES = {"bool": "switches", "int": "numbers", "float": "numbers", "str": "texts", "list": "lists"}


def fit_value(node: Node, key: str | int, dotted: str, value: Any, source: Source) -> Any:
    """``value`` as it can be stored at ``key`` of ``node``: as it is, or an int for a whole float where an int belongs.

    ``dotted`` is the whole key, for messages. What may stand there is what the annotation of the argument says, and
    what stands there now. Raises ConfigError naming expected and got.
    """
    if key == TARGET:
        return _fit_target(dotted, value, source)
    if isinstance(value, str) and "${" in value:
        return value  # an interpolation: `check_interpolation` looks at it when it is there
    expected, current = _expected_kinds(node, key)
    kind = value_kind(value)
    if expected is ANY_KIND or kind in expected or (kind == "int" and "float" in expected):
        _check_elements(current, dotted, value, source)
        return value
    if kind == "float" and "int" in expected and value.is_integer():
        return int(value)  # 1e4
    got = "None" if value is None else f"{shown(value)} ({_KIND_NAMES[kind]})"
    cure = _cure(expected, dotted, value)
    raise source.error(f"'{dotted}': expected {kind_names(expected)}, got {got}. It is {shown(current)} now.{cure}")


def takes_text(node: Node, key: str | int) -> bool:
    """Whether text is known to fit at ``key`` of ``node``."""
    expected, _ = _expected_kinds(node, key)
    return expected is not ANY_KIND and "str" in expected


def check_interpolation(node: Node, key: str | int, dotted: str, source: Source) -> None:
    """Check that an interpolation stored at ``key`` of ``node`` has a target. Raises ConfigError."""
    if not OmegaConf.is_interpolation(node, key):
        return
    try:
        node[key]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise source.error(f"'{dotted}': nothing to take the value from: {reason}") from error


def shown(value: Any) -> str:
    """A value or a part in a message."""
    if isinstance(value, DictConfig) and TARGET in value:
        target = value[TARGET]
        return target if isinstance(target, str) else getattr(target, "__qualname__", repr(target))
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fit_target(dotted: str, value: Any, source: Source) -> str:
    if not isinstance(value, str) or locate_target(value) is None:
        raise source.error(f"'{dotted}': expected the dotted name of a callable, got {shown(value)}.")
    return value


def _expected_kinds(node: Node, key: str | int) -> tuple[frozenset[str] | None, Any]:
    """The kinds that may be stored at ``key`` of ``node``, and what is there now."""
    annotated = argument_kinds(node, key) if isinstance(key, str) else ANY_KIND
    current = _current(node, key)
    kind = value_kind(current)
    if annotated is not ANY_KIND:
        # The value in the config counts as well: an annotation may be too narrow, but not for what is already there.
        return annotated | {kind}, current
    if current is None:
        return ANY_KIND, current
    # Nothing says whether None is allowed. A part or a text may be absent; a number or a switch is there to be used.
    return frozenset({kind} if kind in ("bool", "int", "float") else {kind, "null"}), current


def _current(node: Node, key: str | int) -> Any:
    """What is at ``key`` of ``node``, interpolations resolved, or the default of an argument not spelt; else None."""
    if isinstance(node, DictConfig) and key not in node:
        parameter = (parameters(node) or {}).get(key)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default
    if OmegaConf.is_missing(node, key):
        return None
    try:
        return node[key]
    except OmegaConfBaseException:  # an interpolation that has no target yet
        return None


def _check_elements(current: Any, dotted: str, value: Any, source: Source) -> None:
    """A list of numbers stays one, and so does a list of texts or of parts; its length is free."""
    if not (isinstance(current, (list, tuple, ListConfig)) and isinstance(value, list)):
        return
    before = {_element_name(element) for element in current}
    for index, element in enumerate(value):
        if len(before) == 1 and _element_name(element) not in before:
            raise source.error(f"'{dotted}': expected a list of {before.pop()}, got {shown(element)} at index {index}.")


def _element_name(element: Any) -> str:
    return _ELEMENT_NAMES.get(value_kind(element), "parts")


def kind_names(kinds: frozenset[str]) -> str:
    """The kinds in a message: "a number or None"."""
    # An integer is a number, which need not be said twice.
    names = [name for kind, name in _KIND_NAMES.items() if kind in kinds and not (kind == "int" and "float" in kinds)]
    return " or ".join(names)


def _cure(expected: frozenset[str], dotted: str, value: Any) -> str:
    kind = value_kind(value)
    if "str" in expected and kind in ("bool", "int", "float"):
        return f" Put it into quotes to make it text: {dotted}=\"'{value}'\"."
    if "list" in expected and kind in ("bool", "int", "float", "str"):
        return f" Write {dotted}=[{value}]."
    return ""
