"""All tensors in what modules and loaders pass on: containers, dataclasses, detectron2's structures."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.structures import Instances
from torch import Tensor

_DEEPEST = 6  # containers in containers


def tensors_in(value: Any, *, deepest: int = _DEEPEST) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of all of them, such as ("instances.gt_boxes", boxes)."""
    if isinstance(value, Tensor):
        yield "", value
    elif deepest > 0:
        for name, member in _members(value):
            for path, tensor in tensors_in(member, deepest=deepest - 1):
                yield (f"{name}.{path}" if path and name else name or path), tensor


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), member) for key, member in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        yield from ((str(index), member) for index, member in enumerate(value))
    elif isinstance(value, Instances):
        yield from value.get_fields().items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(getattr(value, "tensor", None), Tensor):  # boxes, masks and lists of images
        yield "", value.tensor
