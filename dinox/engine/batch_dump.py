"""A batch as plain tensors, numbers and texts, in files that ``torch.load(weights_only=True)`` reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

from dinox.structures.whole_batch import WholeBatch

_KIND, _VALUE = "kind", "value"


def plain(value: Any, known: dict[int, Tensor] | None = None) -> Any:
    """The same as tensors, numbers, texts, lists and dicts; structures as ``{"kind": "boxes", "value": ...}``. Of what
    is none of it only its text is left, which is enough to tell images apart.

    ``known``: of tensors that came before, by ``id``; they are in the file once.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().cpu().clone()  # a view would bring all of its storage into the file
        return known[id(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(member, known) for key, member in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(member, known) for member in value]
    return _plain_structure(value, known)


def _plain_structure(value: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Instances):
        fields, size = plain(value.get_fields(), known), [int(side) for side in value.image_size]
        return {_KIND: "instances", _VALUE: fields, "image_size": size}
    if isinstance(value, Boxes):
        return {_KIND: "boxes", _VALUE: plain(value.tensor, known)}
    if isinstance(value, BitMasks):
        return {_KIND: "bit_masks", _VALUE: plain(value.tensor, known)}
    if isinstance(value, PolygonMasks):
        polygons = [[torch.as_tensor(part) for part in each] for each in value.polygons]
        return {_KIND: "polygons", _VALUE: polygons}
    if isinstance(value, WholeBatch):
        own = {"start": value.start, "max_objects": value.max_objects}
        return {_KIND: "whole_batch", _VALUE: plain(value.inputs, known), **own}
    try:
        return torch.as_tensor(value).clone()  # numpy's arrays and numbers
    except (TypeError, ValueError, RuntimeError):
        return str(value)


def restored(value: Any) -> Any:
    """What ``plain`` was made of; sequences are lists."""
    if isinstance(value, list):
        return [restored(member) for member in value]
    if not isinstance(value, dict):
        return value
    if not {_KIND, _VALUE} <= set(value):
        return {key: restored(member) for key, member in value.items()}
    kind, content = value[_KIND], value[_VALUE]
    if kind == "instances":
        return Instances(tuple(value["image_size"]), **restored(content))
    if kind == "whole_batch":
        return WholeBatch(restored(content), value["start"], value.get("max_objects"))
    if kind == "polygons":
        return PolygonMasks([[part.numpy() for part in each] for each in content])
    return {"boxes": Boxes, "bit_masks": BitMasks}[kind](content)
