"""What is known of a LazyCall node before it is called: its callable, the arguments this takes, and their types.

A *kind* is one of ``null bool int float str list dict object``: what a value or an annotation can be.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

TARGET = "_target_"

ANY_KIND: frozenset[str] | None = None
"""The kinds of an argument that has no annotation, or one that says nothing."""


def is_call(node: Any) -> bool:
    return isinstance(node, DictConfig) and TARGET in node


def call_target(node: DictConfig) -> Callable | None:
    """The callable of a LazyCall node; None when it is itself a config or cannot be found by its name."""
    target = node[TARGET]
    if isinstance(target, str):
        return locate_target(target)
    return target if callable(target) else None


def locate_target(name: str) -> Callable | None:
    """The callable with the dotted name ``name``, or None."""
    try:
        found = locate(name)
    except Exception:  # whatever the import of that module raises
        return None
    return found if callable(found) else None


def names_beside(name: str) -> list[str]:
    """The public names of the module that a misspelt dotted name begins with, as dotted names."""
    parent = name.rpartition(".")[0]
    try:
        module = locate(parent) if parent else None
    except Exception:  # as above
        return []
    return [f"{parent}.{other}" for other in dir(module) if not other.startswith("_")] if module else []


def parameters(node: Any) -> Mapping[str, inspect.Parameter] | None:
    """The keyword arguments of a LazyCall node's callable; None when any name could be one, or this is no such node."""
    target = call_target(node) if is_call(node) else None
    if target is None:
        return None
    try:
        found = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    if any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    return {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def argument_kinds(node: Any, name: str) -> frozenset[str] | None:
    """The kinds that argument ``name`` of a LazyCall node takes, by its annotation and default; else ANY_KIND."""
    parameter = (parameters(node) or {}).get(name)
    if parameter is None:
        return ANY_KIND
    annotation = _type_hints(call_target(node)).get(name, parameter.annotation)
    kinds = annotation_kinds(annotation)
    if kinds is ANY_KIND:
        return ANY_KIND
    # Old code writes `x: int = None`.
    return kinds | {"null"} if parameter.default is None else kinds


def argument_choices(node: Any, name: str) -> tuple[Any, ...] | None:
    """The values that argument ``name`` of a LazyCall node can have, if its annotation is a ``Literal``; else None."""
    target = call_target(node) if is_call(node) else None
    annotation = None if target is None else _type_hints(target).get(name)
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else None


@cache
def _type_hints(target: Callable) -> dict[str, Any]:
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    try:
        return typing.get_type_hints(function)
    except Exception:  # a name of a string annotation that exists only while type checking
        return {}


_PLAIN_KINDS = {
    type(None): {"null"},
    bool: {"bool"},
    int: {"int"},
    float: {"int", "float"},  # PEP 484: an int will do
    str: {"str"},
}


def annotation_kinds(annotation: Any) -> frozenset[str] | None:
    """The kinds of values that fit a type annotation; ANY_KIND if it says nothing."""
    if annotation in (inspect.Parameter.empty, Any, object) or isinstance(annotation, (str, typing.TypeVar)):
        return ANY_KIND
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        members = [annotation_kinds(member) for member in typing.get_args(annotation)]
        return ANY_KIND if ANY_KIND in members else frozenset().union(*members)
    if origin is typing.Annotated:
        return annotation_kinds(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return frozenset(value_kind(value) for value in typing.get_args(annotation))
    if annotation is None:
        return frozenset({"null"})
    if not isinstance(origin, type):
        return ANY_KIND
    if origin in _PLAIN_KINDS:
        return frozenset(_PLAIN_KINDS[origin])
    if issubclass(origin, collections.abc.Mapping):
        return frozenset({"dict"})
    if origin is collections.abc.Callable:
        return frozenset({"object"})
    # tuple, list, Sequence, Iterable, ...; a container class of modules (nn.ModuleList) is an object.
    if issubclass(origin, (list, tuple, set, frozenset)) or origin.__module__ == "collections.abc":
        return frozenset({"list"})
    return frozenset({"object"})


def value_kind(value: Any) -> str:
    """The kind of a value in a config or of an override. A LazyCall node is an ``object``: it will become one."""
    if value is None:
        return "null"
    if isinstance(value, bool):  # before int, whose subclass it is
        return "bool"
    for plain, kind in ((int, "int"), (float, "float"), (str, "str"), ((list, tuple, ListConfig), "list")):
        if isinstance(value, plain):
            return kind
    if isinstance(value, (dict, DictConfig)):
        return "object" if TARGET in value else "dict"
    return "object"


def children(node: DictConfig | ListConfig) -> Iterator[tuple[str, Any]]:
    """(key, value) of a node. Interpolations and missing values are given as None: they belong to other nodes."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        unreadable = OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key)
        yield str(key), None if unreadable else node[key]


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below ``node``, list indices included."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    for key, value in children(node):
        dotted = f"{prefix}.{key}" if prefix else key
        yield dotted, value
        yield from walk(value, dotted)


def detections_key(cfg: DictConfig) -> str:
    """Of how many detections a config's model gives: its post-processing's own, or that of the ranking within."""
    node = OmegaConf.select(cfg, "model.postprocess", throw_on_resolution_failure=False)
    known = parameters(node) or {}
    within = "ranking" in known and "num_detections" not in known
    return f"model.postprocess{'.ranking' if within else ''}.num_detections"


def innermost_evaluator(cfg: DictConfig) -> Any:
    """The node of the evaluator that knows the dataset, which others may be wrapped around."""
    node = cfg.dataloader.evaluator
    while isinstance(node, DictConfig) and isinstance(node.get("evaluator"), DictConfig):
        node = node.evaluator
    return node
