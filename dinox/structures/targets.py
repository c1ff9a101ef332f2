"""Ground truth of a batch, padded to one tensor per field.

Legend: B images, W images of the whole batch, M the largest number of objects of an image in the (whole) batch (at
least 1, so that indexing always works).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from dinox.structures.boxes import image_size_as_box, xyxy_to_cxcywh


@dataclass(frozen=True)
class Targets:
    """labels (B, M) int64; boxes (B, M, 4) normalised cxcywh; valid (B, M) bool; counts: objects per image (host).

    seeds: of what is drawn at random for each image (see :mod:`dinox.utils.image_random`); None: images have none.
    whole: all images of the step of this rank, where these are only some of them, from the ``start``-th one on; None:
    these are all.
    max_of_ranks: ``max_count`` of the whole batches of all ranks; None: the ranks have not told each other.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    counts: tuple[int, ...]
    seeds: tuple[int, ...] | None = None
    whole: Targets | None = None
    start: int = 0
    max_of_ranks: int | None = None

    @property
    def max_count(self) -> int:
        """Objects of the fullest image; 0 when the whole batch is empty (the tensors are 1 wide even then)."""
        return max(self.counts, default=0)

    @property
    def batch(self) -> Targets:
        """The whole batch."""
        return self if self.whole is None else self.whole

    @property
    def share(self) -> float:
        """Of the whole batch's images."""
        return len(self.counts) / len(self.batch.counts)

    def part(self, start: int, size: int) -> Targets:
        """``size`` images from ``start`` on, which know the whole batch."""
        kept = slice(start, start + size)
        seeds = None if self.seeds is None else self.seeds[kept]
        return Targets(
            self.labels[kept], self.boxes[kept], self.valid[kept], self.counts[kept], seeds, whole=self, start=start
        )

    def of_classes(self, classes: Sequence[int]) -> Targets:
        """Only the objects of these classes, in their order."""
        labels = self.batch.labels
        return self.select(torch.isin(labels, torch.tensor(list(classes), device=labels.device)))

    def select(self, wanted: Tensor) -> Targets:
        """Only the objects where ``wanted`` is True, in their order. wanted: (W, M), of the whole batch."""
        if self.whole is not None:
            return self.whole.select(wanted).part(self.start, len(self.counts))
        kept = [image[:count].nonzero()[:, 0] for image, count in zip(wanted, self.counts, strict=True)]
        selected = self.from_lists(
            [labels[index] for labels, index in zip(self.labels, kept, strict=True)],
            [boxes[index] for boxes, index in zip(self.boxes, kept, strict=True)],
        )
        return dataclasses.replace(selected, seeds=self.seeds)

    def as_one_class(self) -> Targets:
        """The same objects, all of class 0: what class-agnostic proposals learn."""
        whole = None if self.whole is None else self.whole.as_one_class()
        return dataclasses.replace(self, labels=torch.zeros_like(self.labels), whole=whole)

    @classmethod
    def from_lists(cls, labels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Targets:
        """labels: B tensors (M_b,); boxes: B tensors (M_b, 4), normalised cxcywh."""
        counts = tuple(len(each) for each in labels)
        width = max((1, *counts))
        padded_labels = labels[0].new_zeros(len(counts), width)
        padded_boxes = boxes[0].new_zeros(len(counts), width, 4)
        for b, count in enumerate(counts):
            padded_labels[b, :count] = labels[b]
            padded_boxes[b, :count] = boxes[b]
        slots = torch.arange(width, device=padded_labels.device)
        valid = slots < torch.tensor(counts, device=slots.device)[:, None]  # (B, M)
        return cls(padded_labels, padded_boxes, valid, counts)

    @classmethod
    def from_instances(
        cls, instances: Sequence[Instances], *, num_classes: int, names: Sequence[str], device: torch.device
    ) -> Targets:
        """From detectron2's ground truth (``gt_boxes`` absolute xyxy in the frame of ``image_size``, ``gt_classes``).

        ``names`` tell the images apart in errors.

        Raises:
            ValueError: a class outside [0, num_classes), a box that is not finite or has a negative width or height.
        """
        labels, boxes = [], []
        for each, name in zip(instances, names, strict=True):
            _check_ground_truth(each, num_classes, name)
            xyxy = each.gt_boxes.tensor.float()
            boxes.append(xyxy_to_cxcywh(xyxy / image_size_as_box(each.image_size, xyxy)))
            labels.append(each.gt_classes.long())
        targets = cls.from_lists(labels, boxes)
        moved = [each.to(device, non_blocking=True) for each in (targets.labels, targets.boxes, targets.valid)]
        return cls(*moved, targets.counts)


def _check_ground_truth(instances: Instances, num_classes: int, name: str) -> None:
    classes, boxes = instances.gt_classes, instances.gt_boxes.tensor
    if len(classes) == 0:
        return
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name}: gt_classes holds {low if low < 0 else high}, expected 0 <= class < num_classes = {num_classes}. "
            "Set model.num_classes to the number of classes of the dataset, or fix the category ids."
        )
    bad = ~torch.isfinite(boxes).all(-1) | (boxes[:, 2:] < boxes[:, :2]).any(-1)
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: gt_boxes[{index}] is {boxes[index].tolist()}, expected finite (x1, y1, x2, y2) with x2 >= x1 and "
            "y2 >= y1. Remove or fix this annotation."
        )


TargetView = Callable[[Targets], Targets]
"""What of a batch's objects some predictions are to learn: :meth:`Targets.of_classes`, :meth:`Targets.as_one_class`."""
