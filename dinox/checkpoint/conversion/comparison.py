"""Which tensors of a model a state dict fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.checkpoint.conversion.formats import FORMATS
from dinox.utils.names import backbone_prefix, is_pretrained

Shape = tuple[int, ...]

_SHOWN = 3

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


def explain(comparison: Comparison, model: nn.Module) -> str:
    """Why a state dict does not fit the model, with examples, and the cure."""
    examples = []
    for title, names in (("missing", comparison.missing), ("not in the model", comparison.unused)):
        if names:
            examples.append(f"{title}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}")
    for name, (in_file, in_model) in list(comparison.mismatched.items())[:_SHOWN]:
        examples.append(f"{name}: {in_file} in the file, {in_model} in the model")
    heads = [name for name in comparison.mismatched if "class_head" in name]
    if heads and all("class_head" in name or "label" in name for name in comparison.mismatched):
        (in_file, *_), (in_model, *_) = comparison.mismatched[heads[0]]
        number = model.num_classes + in_file - in_model  # a row for "no object" is no class
        cure = (
            f"the file is for {number} classes: convert it with model.num_classes={number}, and fine-tune from the "
            "result, whose heads are then made anew"
        )
    elif not comparison.mismatched and all(map(_is_training_part, [*comparison.missing, *comparison.unused])):
        cure = (
            "these tensors are for training only: leave them out with --training-parts drop, or give the config that "
            "has the same auxiliary heads"
        )
    else:
        cure = "give the config that fits the file, or --partial to write what fits"
    return f"{comparison.summary()} ({'; '.join(examples)}). {cure[0].upper()}{cure[1:]}"


def _part(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first in ("backbone", "query_groups") else first


def _is_training_part(name: str) -> bool:
    return any(name.startswith(entry.training_parts) for entry in FORMATS)
