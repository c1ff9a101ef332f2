"""What the user knows about images at inference: keys of the model's inputs, checked, as tensors.

``known_boxes`` (n, 4) absolute xyxy in the frame of ``image`` and ``known_labels`` (n,): objects that are there.
``known_classes``: all classes that are there. Labels and classes are indices, or names where the model has them.

Legend: B images, C classes of an image.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor

from dinox.structures import ANY_CLASS, KnownClasses, Targets, xyxy_to_cxcywh
from dinox.structures.boxes import image_size_as_box
from dinox.utils.suggest import did_you_mean

BOXES, LABELS, CLASSES = "known_boxes", "known_labels", "known_classes"

_SLACK = 1.0  # pixels that a box may stick out of its image, as scaled and rounded boxes do; it is clipped


class KnownInputs:
    """Reads the keys. class_names: by class index; None: classes can only be given by their indices."""

    def __init__(self, *, num_classes: int, class_names: Sequence[str] | None, device: torch.device):
        self.num_classes, self.class_names, self.device = num_classes, class_names, device

    def objects(self, batched_inputs: Sequence[dict[str, Any]], names: Sequence[str]) -> Targets | None:
        """The objects that are known, as normalised boxes; None if no input has the keys.

        Raises:
            ValueError: names the image, what was expected, and what was given.
        """
        if not any(BOXES in x or LABELS in x for x in batched_inputs):
            return None
        labels, boxes = [], []
        for x, name in zip(batched_inputs, names, strict=True):
            size = tuple(x["image"].shape[-2:])
            xyxy = boxes_inside(x.get(BOXES), size, name)
            indices = self._indices(x.get(LABELS), LABELS, name)
            if len(xyxy) != len(indices):
                raise ValueError(
                    f"{name}: expected one of {LABELS} for each of {BOXES}, got {len(indices)} for {len(xyxy)} boxes"
                )
            boxes.append(xyxy_to_cxcywh(xyxy / image_size_as_box(size, xyxy)).to(self.device))
            labels.append(torch.tensor(indices, dtype=torch.int64, device=self.device))
        return Targets.from_lists(labels, boxes)

    def classes(self, batched_inputs: Sequence[dict[str, Any]], names: Sequence[str]) -> KnownClasses | None:
        """The classes that are known; None if no input has the key. Raises ValueError as ``objects``."""
        if not any(x.get(CLASSES) is not None for x in batched_inputs):
            return None
        rows = []
        for x, name in zip(batched_inputs, names, strict=True):
            given = x.get(CLASSES)
            rows.append([ANY_CLASS] if given is None else list(dict.fromkeys(self._indices(given, CLASSES, name))))
        width = max(1, *map(len, rows))
        labels = torch.tensor([row + [ANY_CLASS] * (width - len(row)) for row in rows], device=self.device)
        counts = torch.tensor([len(row) for row in rows], device=self.device)
        return KnownClasses(labels, torch.arange(width, device=self.device) < counts[:, None])

    def _indices(self, given: Any, key: str, name: str) -> list[int]:
        if given is None:
            return []
        if hasattr(given, "tolist"):  # a tensor or an array
            given = given.tolist()
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ValueError(f"{name}: {key}: expected a list of classes, got {given!r}")
        return [self._index(each, key, name) for each in given]

    def _index(self, given: Any, key: str, name: str) -> int:
        if isinstance(given, str):
            return self._named(given, key, name)
        try:
            index = operator.index(given)  # of any whole number, such as numpy's
        except TypeError:
            index = None
        if index is None or isinstance(given, bool):
            raise ValueError(f"{name}: {key}: expected class indices (whole numbers) or class names, got {given!r}")
        if not 0 <= index < self.num_classes:
            raise ValueError(f"{name}: {key}: expected 0 <= class < num_classes = {self.num_classes}, got {index}")
        return index

    def _named(self, given: str, key: str, name: str) -> int:
        if self.class_names is None:
            raise ValueError(
                f"{name}: {key}: {given!r} is a name, but the model does not know the names of its classes: give class "
                f"indices, 0 to {self.num_classes - 1}, or set model.class_names"
            )
        if given not in self.class_names:
            near = did_you_mean(given, self.class_names)
            shown = ", ".join([*self.class_names[:20], *(["..."] if len(self.class_names) > 20 else [])])
            raise ValueError(f"{name}: {key}: the model has no class {given!r}.{near} It has: {shown}")
        return self._index(list(self.class_names).index(given), key, name)  # there may be more names than classes


def boxes_inside(given: Any, size: tuple[int, int], name: str) -> Tensor:
    """Known boxes as (n, 4) float32 xyxy inside of an image of ``size`` (height, width). Raises ValueError."""
    expected = f"expected {BOXES} as numbers of shape (n, 4), absolute x1, y1, x2, y2 in pixels of the image"
    if given is None:
        return torch.zeros(0, 4)
    try:
        boxes = torch.as_tensor(given.tensor if isinstance(given, Boxes) else given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {expected}, got {type(given).__name__} ({error})") from error
    if boxes.numel() == 0 and boxes.dim() <= 2:
        return torch.zeros(0, 4)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: {expected}, got shape {tuple(boxes.shape)}")
    boxes = boxes.detach().cpu()
    limits = image_size_as_box(size, boxes)
    for wrong, what in (
        (~torch.isfinite(boxes).all(-1), "finite numbers"),
        ((boxes[:, 2:] <= boxes[:, :2]).any(-1), "x2 > x1 and y2 > y1"),
        (
            ((boxes < -_SLACK) | (boxes > limits + _SLACK)).any(-1),
            f"a box inside of the image, which is {size[1]} x {size[0]} pixels here; boxes are scaled as it is",
        ),
    ):
        if wrong.any():
            index = int(wrong.nonzero()[0])
            raise ValueError(f"{name}: {BOXES}[{index}] is {boxes[index].tolist()}, expected {what}")
    clipped = torch.minimum(boxes.clamp(min=0), limits)
    outside = (clipped[:, 2:] <= clipped[:, :2]).any(-1)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"{name}: {BOXES}[{index}] is {boxes[index].tolist()}, of which nothing lies in the image, which is "
            f"{size[1]} x {size[0]} pixels here"
        )
    return clipped
