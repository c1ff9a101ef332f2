"""Conventions on the names of a model's parameters."""

from collections.abc import Iterable


def backbone_prefix(names: Iterable[str]) -> str:
    """What the names of the pre-trained network inside a detector begin with.

    A backbone that wraps one, as detectron2's FPN and our ChannelMapper do, calls it ``bottom_up``; its own layers
    are new.
    """
    wrapped = "backbone.bottom_up."
    return wrapped if any(name.startswith(wrapped) for name in names) else "backbone."
