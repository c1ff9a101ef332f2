"""Building what a config describes, with errors that say whose config it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from dinox.config import ConfigError
from dinox.config.calls import is_call

_FROM_CONSTRUCTORS = (
    OmegaConfBaseException,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)
"""What constructors raise for arguments that are missing or make no sense."""


def build_model(cfg: DictConfig, *, origin: str) -> nn.Module:
    """The model of a LazyConfig. Raises ConfigError that begins with ``origin`` if it cannot be built."""
    with explained(origin, "model"):
        node = cfg.get("model")
        if not is_call(node):
            raise ConfigError(
                f"{origin}: 'model': expected a part with a _target_, such as that of the zoo's configs, got {node!r}"
            )
        model = instantiate(node)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"{origin}: 'model': expected a torch module, got a {type(model).__name__}")
    return model


@contextmanager
def explained(origin: str, key: str) -> Iterator[None]:
    """Errors of constructors as ConfigError that names the config and the key. Our own pass through."""
    try:
        yield
    except ConfigError:
        raise
    except _FROM_CONSTRUCTORS as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{origin}: '{key}' cannot be built ({type(error).__name__}: {reason}). Correct its arguments"
        ) from error
