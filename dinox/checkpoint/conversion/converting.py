"""State dicts of other implementations under dinox's names, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dinox.checkpoint.conversion.formats import FORMATS, OURS, SOURCES, TARGETS, Format, Settings
from dinox.checkpoint.conversion.parts import pick_class_rows
from dinox.checkpoint.conversion.rules import (
    Ignore,
    Translation,
    count_unknown,
    nearest_name,
    to_ours,
    to_theirs,
    without,
)
from dinox.utils.suggest import did_you_mean

TrainingParts = Literal["keep", "drop"]
"""What becomes of tensors that only training needs, such as those of auxiliary heads."""

_OWN_PART = "query_groups."  # every detector of ours has it, and nobody else
_SHOWN = 5
_RECOGNISED = 0.5
"""Part of the names that a source has to know for a guess; what it does not know is an error all the same."""


@dataclass(frozen=True)
class Conversion:
    """Weights under dinox's names, and what was done to get them.

    origin: whose they were; None: ours. skipped: their name -> why it is not needed. class_rows: which of their rows
    are our classes, in order; None: all. reshaped: our name -> shape before and after these rows were picked.
    settings: config key -> what their model computes with.
    """

    weights: dict[str, Tensor]
    origin: Format | None
    skipped: Mapping[str, str]
    class_rows: Sequence[int] | None
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    settings: Settings


def convert(
    state_dict: Mapping[str, Tensor],
    source: str,
    target: str = OURS,
    *,
    category_ids: Sequence[int] | None = None,
    training_parts: TrainingParts = "keep",
) -> dict[str, Tensor]:
    """Rename a state dict of one implementation into that of another, exactly.

    Tensors are shared with ``state_dict``, not copied, and a second name of a tensor stays one.

    Args:
        state_dict: the weights (of a ``{"model": ...}`` file: that entry).
        source: whose they are: "detrex" (its DETR, Conditional DETR, Anchor DETR, DAB-DETR, DN-DETR, Deformable DETR,
            DAB- and DN-Deformable-DETR, H-DETR and DINO; where heads are separate by layer, load into a model with
            ``heads.shared=False``), "dino", "dn-detr" and "stable-dino" (those of their authors, IDEA-Research),
            "h-detr" (its authors', and their Deformable DETR), "co-detr" (its authors' Co-DINO and
            Co-Deformable-DETR), "dinox", or for networks alone "torchvision", "timm", "detectron2" (Caffe2's names are
            taken too) and "microsoft" (Swin).
        target: "dinox", "detrex", "stable-dino" or "co-detr".
        category_ids: for "dino", "dn-detr" and "h-detr", whose class rows are category ids: the ids of the classes, in
            the order of the new classes. By default the 80 of COCO if there are 91 rows, else every row is a class.
        training_parts: for "co-detr", what becomes of the auxiliary heads and of what makes queries of their positives.
            "keep": detectors with these parts train on from the weights, and detect all the same; "drop": the weights
            are those of the detector alone.

    Settings that differ between implementations and that weights do not show, such as the temperature of the
    position embedding, are those of ``FORMATS``; ``convert_file`` sets them.

    Raises ValueError: unknown source or target, a name that no rule knows (with the nearest that one does), or a tensor
    that should be the same as another and is not. Nothing is dropped in silence.
    """
    if target not in TARGETS:
        raise ValueError(f"cannot write the format {target!r}, only {_listed(TARGETS)}.{did_you_mean(target, TARGETS)}")
    weights = read(state_dict, source, category_ids=category_ids, training_parts=training_parts).weights
    return weights if target == OURS else write(weights, target)


def read(
    state_dict: Mapping[str, Tensor],
    source: str,
    *,
    category_ids: Sequence[int] | None = None,
    training_parts: TrainingParts = "keep",
) -> Conversion:
    """``convert`` to dinox's names, with an account."""
    if source not in SOURCES:
        raise ValueError(
            f"unknown checkpoint source {source!r}: expected {_listed(SOURCES)}.{did_you_mean(source, SOURCES)}"
        )
    entry = None if source == OURS else _best_format(state_dict, source)
    if category_ids is not None and not (entry and entry.class_rows):
        takers = _listed(list(dict.fromkeys(entry.source for entry in FORMATS if entry.class_rows)))
        raise ValueError(f"category ids say which class rows to keep of {takers}; the classes of {source} are numbered")
    _check_training_parts(training_parts, source, entry)
    if entry is None:
        return Conversion(dict(state_dict), None, {}, None, {}, {})
    prepared = entry.prepare(state_dict)
    table = entry.table(prepared)
    if training_parts == "drop":
        why = "for training only"
        table = [
            *without(table, entry.training_parts, why),
            *(Ignore(template, why) for template in entry.their_training_parts),
        ]
    translation = to_ours(prepared, table)
    if translation.unknown:
        whose, hint = _whose(state_dict), entry.explain_unknown(translation.unknown)
        if whose is not None or hint is None:
            hint = f"{nearest_name(translation.unknown[0], table)} {whose or 'Is the source right?'}"
        raise ValueError(
            f"{len(translation.unknown)} of {len(prepared)} names are not those of {entry.name}: "
            f"{_listed(translation.unknown)}. {hint.strip()}"
        )
    weights = entry.finish(translation.weights)
    rows = None if entry.class_rows is None else entry.class_rows(weights, category_ids)
    picked = (
        weights
        if rows is None
        else pick_class_rows(weights, rows, unknown_row=entry.unknown_row, object_row=entry.object_row)
    )
    settings = {**entry.settings, **entry.settings_of(state_dict)}
    return Conversion(picked, entry, translation.skipped, rows, _reshaped(weights, picked), settings)


def _check_training_parts(choice: str, source: str, entry: Format | None) -> None:
    choices = get_args(TrainingParts)
    if choice not in choices:
        raise ValueError(f"training_parts: expected one of {_listed(choices)}, got {choice!r}")
    if choice == "drop" and not (entry and entry.training_parts):
        having = _listed(list(dict.fromkeys(entry.source for entry in FORMATS if entry.training_parts)))
        raise ValueError(f"training_parts: those of {having} can be dropped, and these weights are of {source}")


def write(weights: Mapping[str, Tensor], target: str) -> dict[str, Tensor]:
    """Our weights in the format of ``target``. Raises ValueError naming what has no counterpart there."""
    entry = find_format(weights, target)
    translation = _write_as(weights, entry)
    if translation.unknown:
        raise ValueError(
            f"{entry.name} has no counterpart of {len(translation.unknown)} of these {len(weights)} tensors: "
            f"{_listed(translation.unknown)}"
        )
    return translation.weights


def guess_source(state_dict: Mapping[str, Tensor]) -> str:
    """Whose names these are. Raises ValueError if nobody's that we know."""
    if any(name.startswith(_OWN_PART) for name in state_dict):
        return OURS
    best = min(FORMATS, key=lambda entry: _count_unknown(state_dict, entry))
    known = len(state_dict) - _count_unknown(state_dict, best)
    if known < _RECOGNISED * len(state_dict) or not state_dict:
        names = ", ".join(list(state_dict)[:_SHOWN])
        raise ValueError(
            f"cannot tell whose weights these are: of the {len(state_dict)} names ({names}, ...) {best.name} has "
            f"{known}, and others fewer. dinox reads {_listed(SOURCES)}"
        )
    return best.source


def find_format(weights: Mapping[str, Tensor], target: str) -> Format:
    """That of ``target`` which has most of our weights."""
    entries = [entry for entry in FORMATS if entry.source == target and entry.write]
    return min(entries, key=lambda entry: len(_write_as(weights, entry).unknown))


def _best_format(state_dict: Mapping[str, Tensor], source: str) -> Format:
    entries = [entry for entry in FORMATS if entry.source == source]
    return min(entries, key=lambda entry: _count_unknown(state_dict, entry))


def _whose(state_dict: Mapping[str, Tensor]) -> str | None:
    """Another source that knows all names, as a sentence."""
    other = next((entry for entry in FORMATS if _count_unknown(state_dict, entry) == 0), None)
    return None if other is None else f"All are names of {other.name}: the source is {other.source!r}"


def _count_unknown(state_dict: Mapping[str, Tensor], entry: Format) -> int:
    # Names only: whether duplicates agree is looked at when it is known whose weights these are.
    prepared = entry.prepare(state_dict)
    return count_unknown(prepared, entry.table(prepared))


def _write_as(weights: Mapping[str, Tensor], entry: Format) -> Translation:
    prepared = entry.write(weights)
    return to_theirs(prepared, entry.table(prepared))


def _reshaped(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {
        name: (tuple(before[name].shape), tuple(tensor.shape))
        for name, tensor in after.items()
        if name in before and before[name].shape != tensor.shape
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
