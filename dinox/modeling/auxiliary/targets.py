"""What the anchors of a batch learn, and what they are to the rest of the model.

Legend: B images, P anchors of an image, M objects of the fullest image (at least 1), K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dinox.matching import IGNORED
from dinox.modeling.auxiliary.anchors import Anchors
from dinox.structures import BACKGROUND, HeadPyramid, HeadSamples
from dinox.utils.distributed import average_across_ranks
from dinox.utils.gather import gather_rows

Assign = Callable[[int, Tensor, Tensor], Tensor]
"""Image of the batch, its objects' boxes (M, 4), absolute xyxy, and labels (M,) -> (anchors on that image,) int64: the
object, -1 = background, -2 = neither."""


@dataclass(frozen=True)
class DenseTargets:
    """target_index: (B, P) int64, -1 = background. positive: (B, P) bool. counted: (B, P) bool, where classes are
    learned: neither padding nor ignored. boxes: (B, P, 4) absolute xyxy of the object, anything elsewhere. labels:
    (B, P), likewise. valid: (B, P) bool, not in padding.
    """

    target_index: Tensor
    positive: Tensor
    counted: Tensor
    valid: Tensor
    boxes: Tensor
    labels: Tensor

    def one_hot_labels(self, logits: Tensor) -> Tensor:
        """(B, P, K) as ``logits``, 1 at the class of positives."""
        return one_hot(self.labels, self.positive, like=logits)

    def num_positives(self) -> Tensor:
        """Positives of the batch, an image without any counting as one (mmdetection); averaged over ranks."""
        return at_least(1, self.positive.sum(1).clamp(min=1).sum().float())


def one_hot(labels: Tensor, present: Tensor, *, like: Tensor) -> Tensor:
    """labels: (...) int64, present: (...) bool -> as ``like`` (..., K): 1 at the label where one is present, else 0."""
    hot = torch.zeros_like(like)
    return hot.scatter_(-1, labels[..., None], present[..., None].to(hot))


@torch.no_grad()
def find_targets(anchors: Anchors, instances: Sequence[Instances], assign: Assign) -> DenseTargets:
    """``assign`` sees one image and its own anchors at a time: an image does not depend on its batch."""
    valid = anchors.valid()
    boxes = [each.gt_boxes.tensor.to(anchors.boxes) for each in instances]
    labels = [each.gt_classes.to(valid.device, torch.int64) for each in instances]
    assigned = torch.full_like(valid, BACKGROUND, dtype=torch.int64)
    for image, index in enumerate(anchors.valid_index):
        assigned[image, index] = assign(image, boxes[image], labels[image])
    return as_targets(assigned, valid, boxes, labels)


def as_targets(assigned: Tensor, valid: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> DenseTargets:
    """assigned: (B, P), see :data:`Assign`. boxes, labels: the objects of every image."""
    object_index = assigned.clamp(min=0)
    if max(map(len, labels)) == 0:  # nothing to pick from
        boxes = [each.new_zeros(1, 4) for each in boxes]
        labels = [each.new_zeros(1) for each in labels]
    padded_boxes, padded_labels = (
        pad_sequence(list(boxes), batch_first=True),
        pad_sequence(list(labels), batch_first=True),
    )
    return DenseTargets(
        target_index=assigned.clamp(min=BACKGROUND),
        positive=assigned >= 0,
        counted=valid & (assigned != IGNORED),
        valid=valid,
        boxes=gather_rows(padded_boxes, object_index),
        labels=padded_labels.gather(1, object_index),
    )


def at_least(floor: float, value: Tensor) -> Tensor:
    """A normaliser: averaged over ranks, never below ``floor``."""
    return average_across_ranks(value.detach()).clamp(min=floor)


def samples_of(pyramid: HeadPyramid, anchors: Anchors, targets: DenseTargets) -> HeadSamples:
    """All anchors; those in padding are boxes of size 0, as the release's."""

    def features_at(index: Tensor) -> Tensor:
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)  # (B, S, D)
        return gather_rows(tokens, index // anchors.per_cell)  # (B, N, D)

    boxes = (anchors.boxes * targets.valid[..., None]).detach()  # (B, P, 4)
    return HeadSamples(boxes=boxes, target_index=targets.target_index, features_at=features_at)
