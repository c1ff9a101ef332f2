"""The pieces of a model that settings of the training loop work on one by one: its layers, called segments.

A layer declares itself with a class attribute ``is_segment = True``, as :class:`~dinox.layers.EncoderLayer` and
:class:`~dinox.layers.DecoderLayer` do, so that encoders and decoders made of them need not say anything. detectron2's
blocks cannot, so they are named here.
"""

from collections.abc import Sequence

from detectron2.layers import CNNBlockBase
from torch import nn

from dinox.utils.suggest import did_you_mean

_UNDECLARED = (CNNBlockBase,)
"""Segments of other libraries: the stem and the blocks of detectron2's ResNets."""


def find_segments(part: nn.Module) -> list[nn.Module]:
    """The outermost segments of a part, in order, each once."""
    if getattr(part, "is_segment", False) or isinstance(part, _UNDECLARED):
        return [part]
    return list(dict.fromkeys(segment for child in part.children() for segment in find_segments(child)))


def find_part(model: nn.Module, name: str, *, setting: str) -> nn.Module:
    """``setting``: what asks for the part. Raises ValueError if the model has none of this name."""
    part = getattr(model, name, None)
    if isinstance(part, nn.Module):
        return part
    parts = [child for child, _ in model.named_children()]
    raise ValueError(
        f"{setting}: this model has no part {name!r}: it has {', '.join(parts)}.{did_you_mean(name, parts)} Leave "
        f"{name!r} out of {setting}"
    )


def check_parts(names: object, known: Sequence[str], *, setting: str) -> None:
    """Raises ValueError unless ``names`` is a list of some of ``known``, each at most once."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"{setting}: expected a list of some of {', '.join(known)}, got {names!r}: [{known[0]}]")
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ValueError(f"{setting}: expected some of {', '.join(known)}, got {name!r}.{hint}")
    if len(set(names)) < len(names):
        raise ValueError(f"{setting}: expected every part once, got {', '.join(names)}: leave out what is repeated")
