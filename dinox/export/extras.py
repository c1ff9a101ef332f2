"""Packages that only exporting and running exported files need."""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType


class MissingExtra(ValueError):
    """A package that does not come with dinox is not installed. The message names the pip extra that has it."""


def require_extras(names: Sequence[str], *, purpose: str) -> None:
    """Raises MissingExtra if a package cannot be found; to be called before long work."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{purpose} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'dinox[export]'"
        )


def import_extra(name: str, *, purpose: str) -> ModuleType:
    """The package, or MissingExtra."""
    require_extras([name.partition(".")[0]], purpose=purpose)
    return importlib.import_module(name)
