"""Which of a batch's objects each query group learns, for :class:`QueryGroups`' slot ``split``.

Every split is called as ``split(context)`` in training, and returns the target views of groups by their names. The
views are hashable: the criterion looks through each of them once.

Draws are for all images of the whole batch, so that the parts of it draw the same.

Legend: W images of the whole batch, M objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dinox.structures import MATCHING, QueryContext, Targets, TargetView
from dinox.utils.image_random import draw_uniform

KNOWN_GROUP = "denoising"  # the group of known objects: they are denoising queries without noise


@dataclass(frozen=True)
class OfClasses:
    """Only the objects of these classes."""

    classes: tuple[int, ...]

    def __call__(self, targets: Targets) -> Targets:
        return targets.of_classes(self.classes)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Only some objects of one batch. wanted: (W, M) bool."""

    wanted: Tensor

    def __call__(self, targets: Targets) -> Targets:
        return targets.select(self.wanted)


class SplitByClass:
    """Objects of known classes are denoising queries, and those of unknown classes are what matching queries learn
    (DN-DETR, section 5.7.1). Objects of classes that are neither are not there.
    """

    def __init__(self, *, num_classes: int, known: Sequence[int], unknown: Sequence[int]):
        self.known, self.unknown = tuple(known), tuple(unknown)
        for name, classes in (("known", self.known), ("unknown", self.unknown)):
            if not all(isinstance(c, int) and c >= 0 for c in classes) or len(set(classes)) < len(classes):
                raise ValueError(f"{name}: expected class indices of at least 0, each once, got {list(classes)}")
            if classes and max(classes) >= num_classes:
                raise ValueError(
                    f"{name} has class {max(classes)}, but the model has num_classes = {num_classes}: give "
                    "model.query_groups.split the classes of this model's dataset (dinox.data.split_classes)"
                )
        if both := sorted(set(self.known) & set(self.unknown)):
            raise ValueError(f"class {both[0]} is both known and unknown: give it to one of the two")
        if not self.unknown:
            raise ValueError("unknown: expected at least one class, got none: there would be nothing to detect")

    def __call__(self, context: QueryContext) -> dict[str, TargetView]:
        return {KNOWN_GROUP: OfClasses(self.known), MATCHING: OfClasses(self.unknown)}


class SplitAtRandom:
    """Any object may be known: a share of every image's objects, drawn uniformly from [0, ``most``], are denoising
    queries, and matching queries learn the remaining ones.

    Not in the paper, whose models know objects of certain classes only; this is what progressive inference needs, since
    there a model's own detections become known objects.
    """

    def __init__(self, *, most: float = 1.0):
        if not 0 <= most <= 1:
            raise ValueError(f"most: expected a share in [0, 1], got {most}")
        self.most = most

    def __call__(self, context: QueryContext) -> dict[str, TargetView]:
        valid, counts = context.targets.batch.valid, context.targets.batch.counts
        share = _draw((len(valid), 1), "share of known objects", context) * self.most
        known = _draw(valid.shape, "known objects", context, counts=counts) < share  # (W, M)
        return {KNOWN_GROUP: Chosen(known), MATCHING: Chosen(~known)}


class OneClassPerImage:
    """Matching queries learn the objects of one class of every image, drawn anew each time: known-label detection
    (DN-DETR, section 5.7.1), where a query carries the label of the class that it is to find.

    At inference there is a set of queries for each class of an image. One of them per image and step is our choice for
    training, on which the paper is silent: a step costs what it does without labels.
    """

    def __call__(self, context: QueryContext) -> dict[str, TargetView]:
        targets = context.targets.batch
        # A random number per object, but objects of one class share that of the first of them: classes are drawn
        # uniformly, and not by how many objects they have.
        keys = _draw(targets.valid.shape, "class to find", context, counts=targets.counts)
        same = (targets.labels[:, :, None] == targets.labels[:, None]) & targets.valid[:, None]  # (W, M, M)
        keys = keys.gather(1, same.int().argmax(-1)).masked_fill(~targets.valid, -1.0)
        chosen = targets.labels.gather(1, keys.argmax(1, keepdim=True))  # (W, 1)
        return {MATCHING: Chosen(targets.labels == chosen)}


def _draw(shape: Sequence[int], purpose: str, context: QueryContext, counts: Sequence[int] | None = None) -> Tensor:
    """(W, ...) uniform in [0, 1)."""
    batch = context.targets.batch
    return draw_uniform(
        shape,
        purpose=purpose,
        device=batch.valid.device,
        generator=context.generator,
        seeds=batch.seeds,
        counts=counts,
    )
