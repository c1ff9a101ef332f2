"""A model's mode for the time of a measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside, the mode that the model was in afterwards."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)
