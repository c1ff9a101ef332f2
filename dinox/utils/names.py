"""Conventions on the names of a model's parameters."""

from collections.abc import Iterable

STAGE_NORMS = "stage_norms"
"""What backbones call the norms of their outputs."""


def backbone_prefix(names: Iterable[str]) -> str:
    """What the names of the pre-trained network inside a detector begin with.

    A backbone that wraps one, as detectron2's FPN and our ChannelMapper do, calls it ``bottom_up``; its own layers
    are new. A wrapped one may itself wrap another.
    """
    names, prefix = list(names), "backbone."
    while any(name.startswith(prefix + "bottom_up.") for name in names):
        prefix += "bottom_up."
    return prefix


def is_pretrained(name: str, prefix: str) -> bool:
    """Is it of the network that ``prefix`` leads to, and not of the norms that a detector adds to its outputs?"""
    return name.startswith(prefix) and not name.startswith(f"{prefix}{STAGE_NORMS}.")
