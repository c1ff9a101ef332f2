"""The one module that asks which detectron2 is installed (v0.6 or main).

It looks at signatures and attributes instead of version numbers, because forks and patched builds keep the numbers.
"""

import inspect
from collections.abc import Callable
from typing import Any

from detectron2.utils.events import EventStorage, get_event_storage


def accepted_arguments(function: Callable) -> frozenset[str] | None:
    """Names that `function` (or a class) takes as keywords; None if it takes any or cannot be inspected."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def supported_kwargs(function: Callable, /, **kwargs: Any) -> dict[str, Any]:
    """Those of `kwargs` that the installed version of `function` knows.

    Only for arguments whose absence changes no result (`async_write_metrics`, `pin_memory`, ...): v0.6 drops them.
    """
    names = accepted_arguments(function)
    return kwargs if names is None else {name: value for name, value in kwargs.items() if name in names}


def event_storage() -> EventStorage | None:
    """The open EventStorage, or None outside of training, where detectron2's own getter fails an assertion."""
    try:
        return get_event_storage()
    except AssertionError:  # v0.6 has no has_event_storage()
        return None
