"""What is counted and rearranged in state dicts of every source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from dinox.checkpoint.conversion.rules import same_tensor

_DECODER_LAYER = re.compile(r"(?:(?:query_head\.)?transformer\.)?decoder\.layers\.(\d+)\.")
_LAYER_HEAD = re.compile(r"heads\.(class_heads|box_heads)\.(\d+)\.(.+)")
_LABELS = re.compile(r".*\.label_embedding\.table\.")
_ENCODER_CLASSES = re.compile(r"query_selection\.class_head\.")
_CLASS_ROWS = re.compile(rf"heads\.class_heads\.|{_ENCODER_CLASSES.pattern}|{_LABELS.pattern}")


def count_decoder_layers(names: Iterable[str]) -> int:
    """The same for their names and for ours."""
    numbers = (_DECODER_LAYER.match(name) for name in names)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def share_equal_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with one head instead of one for each layer, if those are all the same."""
    others = [match for match in map(_LAYER_HEAD.fullmatch, weights) if match and match[2] != "0"]
    if not all(same_tensor(weights[match[0]], weights[f"heads.{match[1]}.0.{match[3]}"]) for match in others):
        return dict(weights)
    repeated = {match[0] for match in others}
    return {name: tensor for name, tensor in weights.items() if name not in repeated}


def repeat_shared_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with a head for every decoder layer; those of a shared one are the same tensors."""
    repeated = dict(weights)
    for name, tensor in weights.items():
        match = _LAYER_HEAD.fullmatch(name)
        if match and match[2] == "0":
            for layer in range(1, count_decoder_layers(weights)):
                repeated.setdefault(f"heads.{match[1]}.{layer}.{match[3]}", tensor)
    return repeated


def pick_class_rows(
    weights: Mapping[str, Tensor], rows: Sequence[int], *, unknown_row: bool = False, object_row: bool = False
) -> dict[str, Tensor]:
    """Our state dict with these rows of the tensors that have one for each class.

    unknown_row: label embeddings have one row more, which stays the last one. object_row: the first row of the
    encoder's class head stays the first one.

    Raises ValueError if there is no such row.
    """
    picked = dict(weights)
    for name, tensor in weights.items():
        if not _CLASS_ROWS.match(name):
            continue
        last = [len(tensor) - 1] if unknown_row and _LABELS.match(name) else []
        num_classes = len(tensor) - len(last)
        if max(rows, default=0) >= num_classes:
            raise ValueError(
                f"{name} has rows 0 to {num_classes - 1}, and none for the category id {max(rows)}: give the ids that "
                "the detector was trained with"
            )
        chosen = [0, *rows[1:]] if object_row and _ENCODER_CLASSES.match(name) else rows
        picked[name] = tensor[[*chosen, *last]]
    return picked


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """Rows of the class head in our state dict; None without one."""
    head = weights.get("heads.class_heads.0.bias")
    return None if head is None else len(head)
