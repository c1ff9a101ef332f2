"""Weights of a detector of some classes for one of others: each class takes the rows of the class of its name.

Row k of a class head is whatever class was number k where it was trained. Loaded as they are into a model of other
classes, or of the same ones in another order, rows would start from, or be, another class's; shapes do not show it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from dinox.checkpoint.reading import CheckpointError
from dinox.structures import ClassRows, PlacedRows, RowLayout
from dinox.utils.text import shortened

_BY_NAME = re.compile(r"class|label")
"""Names of tensors that depend on the number of classes, in models none of whose parts says which these are."""


@dataclass(frozen=True)
class ClassTransfer:
    """Which classes of the model take rows of the file's, by name.

    taken: the model's names of those that both have. new: of the model, not in the file; their rows stay as
    initialised. unused: of the file. tensors: filled row by row, under their names in the model. refused: tensors whose
    rows in the file are not those of its classes, with their shapes there; they stay as initialised.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    tensors: frozenset[str] = field(default_factory=frozenset)
    refused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def row_layouts(model: nn.Module) -> dict[str, RowLayout]:
    """The tensors of a model's state dict that have rows for classes; empty if none of its parts says so
    (``dinox.structures.class_rows``)."""
    layouts: dict[str, RowLayout] = {}
    for prefix, part in model.named_modules(remove_duplicate=False):
        own = part.class_rows() if callable(getattr(part, "class_rows", None)) else _of_detectron2(part)
        layouts |= {f"{prefix}.{name}" if prefix else name: layout for name, layout in own.items()}
    return layouts


def _of_detectron2(part: nn.Module) -> dict[str, RowLayout]:
    """Its parts cannot say it themselves."""
    rows: dict[str, RowLayout] = {}
    if isinstance(part, FastRCNNOutputLayers):
        rows = {f"cls_score.{name}": ClassRows(others=1) for name in part.cls_score.state_dict()}
        of_boxes = ClassRows(per_class=len(part.box2box_transform.weights))
        if 1 < part.num_classes == of_boxes.num_classes(len(part.bbox_pred.weight)):  # else all classes share one box
            rows |= {f"bbox_pred.{name}": of_boxes for name in part.bbox_pred.state_dict()}
    elif isinstance(part, MaskRCNNConvUpsampleHead) and len(part.predictor.weight) > 1:
        rows = {f"predictor.{name}": ClassRows() for name in part.predictor.state_dict()}
    return rows


def is_class_head(name: str, layouts: Mapping[str, RowLayout], theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether a tensor's shapes in file and model differ by the number of classes only. layouts: of the model."""
    by_class = name in layouts if layouts else bool(_BY_NAME.search(name))
    return by_class and len(theirs) == len(ours) > 0 and tuple(theirs[1:]) == tuple(ours[1:])


# ------------------------------------------------------------------------------------------------------------- matching


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> list[int | None]:
    """For each of our classes the number of theirs of the same name; None where there is none.

    Names are the same but for capitals, and blanks or underscores between words ("Traffic Light", "traffic_light").
    A name that is several classes' on one side matches only as it is spelt, and not at all if it is spelt twice.
    """
    found: list[int | None] = [None] * len(ours)
    for alike in (str, _plain):
        number = {name: i for i, name in enumerate(map(alike, theirs)) if i not in found}
        counts = Counter(map(alike, theirs)), Counter(map(alike, ours))
        for k, name in enumerate(map(alike, ours)):
            if found[k] is None and name in number and counts[0][name] == counts[1][name] == 1:
                found[k] = number[name]
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def check_same_classes(theirs: Sequence[str] | None, ours: Sequence[str] | None, *, path: str) -> None:
    """Raises CheckpointError unless both are the same classes in the same order; what is not known is."""
    if theirs is None or ours is None or _are_the_same(theirs, ours):
        return
    raise CheckpointError(
        f"checkpoint {path} was trained on the classes {_listed(theirs)}, but the training data now has "
        f"{_listed(ours)}{_first_difference(theirs, ours)}. A run is resumed with the same classes in the same order. "
        "To fine-tune on others, start a run of its own from the file (train.init_checkpoint=FILE in another "
        "train.output_dir): classes are matched by name then"
    )


def _first_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Which lists that are cut may not show; empty if all that both have is the same."""
    pairs = enumerate(zip(theirs, ours))
    return next((f": class {k} was {a!r} and is {b!r}" for k, (a, b) in pairs if _plain(a) != _plain(b)), "")


def _are_the_same(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    return list(map(_plain, theirs)) == list(map(_plain, ours))


def _listed(names: Sequence[str]) -> str:
    return f"{shortened(names)} ({len(names)})"


# ------------------------------------------------------------------------------------------------------------ transfer


def take_classes_by_name(
    weights: Mapping[str, Tensor], model: nn.Module, *, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[dict[str, Tensor], ClassTransfer | None]:
    """Weights of a model of the classes ``theirs`` for ``model``, whose classes are ``ours``.

    Of each tensor by class, the rows of classes that both have are the file's, and so are those that belong to no class
    ("background", "unknown"); all others are the model's own. Without a ClassTransfer if the classes are the same.
    """
    if _are_the_same(theirs, ours):
        return dict(weights), None
    sources = match_classes(theirs, ours)
    filled, tensors, refused = dict(weights), set(), {}
    for name, own, layout in _by_class(model, ours):
        tensor = weights.get(name)
        if tensor is None or tensor.dim() != own.dim() or tensor.shape[1:] != own.shape[1:]:
            continue
        if isinstance(layout, PlacedRows):
            filled[name] = layout.copy(tensor, own)
            tensors |= {name} if tensor.shape != own.shape else set()
        elif layout.num_classes(len(tensor)) == len(theirs):
            filled[name] = layout.copy(tensor, own, sources)
            tensors.add(name)
        else:
            filled[name], refused[name] = own, tuple(tensor.shape)
    taken = {number for number in sources if number is not None}
    return filled, ClassTransfer(
        taken=tuple(name for name, source in zip(ours, sources, strict=True) if source is not None),
        new=tuple(name for name, source in zip(ours, sources, strict=True) if source is None),
        unused=tuple(name for number, name in enumerate(theirs) if number not in taken),
        tensors=frozenset(tensors),
        refused=refused,
    )


def _by_class(model: nn.Module, ours: Sequence[str]) -> Iterable[tuple[str, Tensor, RowLayout]]:
    """Tensors of the model with as many classes as it has names for."""
    own, layouts = model.state_dict(), row_layouts(model)
    if not layouts:
        layouts = {
            name: ClassRows(others=len(tensor) - len(ours))  # the last row is background, as in detectron2
            for name, tensor in own.items()
            if _BY_NAME.search(name) and tensor.dim() > 0 and len(tensor) - len(ours) in (0, 1)
        }
    for name, layout in layouts.items():
        if isinstance(layout, PlacedRows) or layout.num_classes(len(own[name])) == len(ours):
            yield name, own[name].detach(), layout


def has_class_rows(names: Iterable[str], model: nn.Module) -> bool:
    """Whether some of these tensors of the model have rows for classes."""
    layouts = row_layouts(model)
    if not layouts:
        return any(_BY_NAME.search(name) for name in names)
    return any(isinstance(layouts.get(name), ClassRows) for name in names)


def as_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays as tensors; names without the ``module.`` of a model that was wrapped for several GPUs."""
    wrapped = all(name.startswith("module.") for name in weights)
    return {
        name.removeprefix("module.") if wrapped else name: torch.as_tensor(value) for name, value in weights.items()
    }
