"""Which tensors of a model a state dict fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.utils.names import backbone_prefix, is_pretrained

Shape = tuple[int, ...]

_COUNTER = ".num_batches_tracked"  # of batch norms; frozen ones have none, and neither have old files


@dataclass(frozen=True)
class PartCount:
    """Numbers of tensors of one part of a model: in the model, filled by the file, absent from the file, there with
    another shape; and of those in the file that the model does not have."""

    part: str
    in_model: int
    used: int
    missing: int
    mismatched: int
    unused: int


@dataclass(frozen=True)
class Comparison:
    """used, missing: names in the model. unused: in the state dict only. mismatched: name -> shape in the state dict
    and in the model."""

    used: Sequence[str]
    missing: Sequence[str]
    unused: Sequence[str]
    mismatched: Mapping[str, tuple[Shape, Shape]]

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unused or self.mismatched)

    def summary(self) -> str:
        in_model = len(self.used) + len(self.missing) + len(self.mismatched)
        return (
            f"{len(self.used)} of the model's {in_model} tensors are filled, {len(self.missing)} are missing, "
            f"{len(self.mismatched)} are of another shape, and {len(self.unused)} of the file's are not in the model"
        )

    def by_part(self) -> list[PartCount]:
        names = {"used": self.used, "missing": self.missing, "mismatched": self.mismatched, "unused": self.unused}
        parts = dict.fromkeys(_part(name) for members in names.values() for name in members)
        counts = []
        for part in parts:
            own = {kind: sum(_part(name) == part for name in members) for kind, members in names.items()}
            counts.append(PartCount(part, own["used"] + own["missing"] + own["mismatched"], **own))
        return counts


def compare_weights(model: nn.Module, weights: Mapping[str, Tensor], *, backbone_only: bool = False) -> Comparison:
    """Hold a state dict against a model, or against the pre-trained network in it."""
    own = model.state_dict()
    prefix = backbone_prefix(own)
    in_model = {
        name: tuple(tensor.shape)
        for name, tensor in own.items()
        if not backbone_only or is_pretrained(name, prefix) or name in weights
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return Comparison(
        used=[name for name, shape in in_model.items() if shapes.get(name) == shape],
        missing=[name for name in in_model if name not in shapes],
        unused=[name for name in shapes if name not in in_model],
        mismatched={
            name: (shapes[name], shape) for name, shape in in_model.items() if shapes.get(name, shape) != shape
        },
    )


def fit_counters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the step counters of batch norms that the model has: they are no weights, and 0 will do."""
    names = model.state_dict().keys()
    fitted = {name: tensor for name, tensor in weights.items() if not name.endswith(_COUNTER) or name in names}
    for name in names - fitted.keys():
        if name.endswith(_COUNTER) and name.removesuffix(_COUNTER) + ".running_mean" in fitted:
            fitted[name] = torch.zeros((), dtype=torch.int64)
    return fitted


def _part(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first in ("backbone", "query_groups") else first
