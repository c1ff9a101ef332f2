"""Test-time augmentation: a detector looks at each image several times, larger, smaller and mirrored.

Appendix A of DINO's paper. Boxes are absolute x0, y0, x1, y1 in the frame of the original image, which is the frame of
what a model gives; so nothing has to be known of how a view was resized.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from dinox.inference.fusion import NMSFusion, OneToOneEnsemble

_KEPT = ("file_name", "image_id", "known_labels", "known_classes")  # of an input; they are true of every view


@dataclass(frozen=True)
class View:
    """How an image is looked at once more. scale: of its sides, as the model would be given it. flip: mirrored left to
    right. weight: how much its boxes count, the paper's w.
    """

    scale: float = 1.0
    flip: bool = False
    weight: float = 1.0

    def __post_init__(self):
        for name in ("scale", "weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")

    def of(self, x: dict[str, Any]) -> dict[str, Any]:
        """A model's input like ``x``, with this view of its image."""
        image = x["image"]
        height, width = image.shape[-2:]
        if self.scale != 1:
            resized = (max(1, round(side * self.scale)) for side in (height, width))
            image = _resized(image, *resized)
        if self.flip:
            image = image.flip(-1)
        # Without a frame of the caller's, detections are in that of the image as it was given.
        frame = {"height": x.get("height", height), "width": x.get("width", width)}
        return {key: x[key] for key in _KEPT if key in x} | frame | {"image": image}

    def undone(self, found: Instances) -> Instances:
        """Boxes and scores in the frame of the image as it is, from those in this view of it."""
        boxes = found.pred_boxes.tensor
        if self.flip:
            x0, y0, x1, y1 = boxes.unbind(-1)
            width = found.image_size[1]
            boxes = torch.stack([width - x1, y0, width - x0, y1], -1)
        return Instances(
            found.image_size, pred_boxes=Boxes(boxes), scores=found.scores, pred_classes=found.pred_classes
        )


def make_views(scales: Sequence[float] = (1.0,), *, flip: bool = True) -> tuple[View, ...]:
    """Every scale, and with ``flip`` its mirror image as well. The first scale is the main view, which the paper calls
    the most reliable one."""
    flips = (False, True) if flip else (False,)
    return tuple(View(scale=scale, flip=flipped) for scale in scales for flipped in flips)


class AugmentedDetector(nn.Module):
    """Takes and returns what its model does at inference; any model with detectron2's contract. One view of a batch is
    in memory at a time.

    Views are made of the images as the model would be given them: the test data's size is that of scale 1. Where images
    are much larger than that, set it to the largest scale and give scales of at most 1, so that no detail is lost.

    Args:
        model: in eval mode.
        views: the main one first, see ``make_views``. A main view of scale 1, not mirrored, alone gives exactly what
            the model gives.
        fusion: detections of all views, the main one's first, to one ``Instances``.
    """

    def __init__(
        self,
        *,
        model: Callable[[list[dict]], list[dict[str, Any]]],
        views: Sequence[View] = make_views(),
        fusion: OneToOneEnsemble | NMSFusion | None = None,
    ):
        super().__init__()
        if len(views) == 0:
            raise ValueError("views: expected at least one, the main one, got none")
        self.model = model
        self.views = tuple(views)
        self.fusion = OneToOneEnsemble() if fusion is None else fusion

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        if self.views == (View(),):
            return self.model(batched_inputs)
        for x in batched_inputs:
            _check(x)
        by_view = list(self._look(batched_inputs))
        weights = [view.weight for view in self.views]
        return [{"instances": self.fusion(list(found), weights)} for found in zip(*by_view, strict=True)]

    def _look(self, batched_inputs: list[dict[str, Any]]) -> Iterator[list[Instances]]:
        """Per view, per image."""
        for view in self.views:
            outputs = self.model([view.of(x) for x in batched_inputs])
            yield [view.undone(output["instances"]) for output in outputs]


def _check(x: dict[str, Any]) -> None:
    for key, cure in (
        ("content_size", "set dataloader.test.mapper.augmentations to a resize without padding"),
        ("known_boxes", "give what is known without boxes, or leave test-time augmentation out"),
    ):
        if key in x:
            raise ValueError(
                f"{x.get('file_name', 'input')}: test-time augmentation would have to move the input's {key}, which it "
                f"does not: {cure}"
            )


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """detectron2's way of resizing, (3, H, W) to (3, height, width)."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    resized = T.ResizeTransform(*pixels.shape[:2], height, width).apply_image(pixels)
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))).to(image.device)
