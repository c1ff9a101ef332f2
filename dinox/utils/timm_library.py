"""timm is optional: backbones and their weights need it, everything else does without."""

import importlib
from types import ModuleType


def import_timm(module: str = "timm", *, purpose: str) -> ModuleType:
    """timm, or one of its modules. Raises ValueError that says how to install it if it is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "timm":
            raise
        raise ValueError(f"{purpose} needs timm, which is not installed: pip install 'dinox[timm]'") from error
