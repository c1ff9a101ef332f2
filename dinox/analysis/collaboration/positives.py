"""Positives of heads: how many an object has, and how far they are from the decoder's own queries (Co-DETR, section 4.4
and figure 7).

Legend: N queries of the decoder, P positives of a head in an image, M objects.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.structures import BACKGROUND, HeadSamples
from dinox.structures.boxes import image_size_as_box


@dataclass(frozen=True)
class Places:
    """centers: (P, 2), (x, y) as shares of the image. target_index: (P,) int64, the object of each."""

    centers: Tensor
    target_index: Tensor

    def of_object(self, index: int) -> Tensor:
        """Centres of the positives of one object."""
        return self.centers[self.target_index == index]


def positives_of(samples: HeadSamples, image_size: tuple[int, int]) -> Places:
    """What one image's samples (a batch of 1) have objects for: all that may become customised positive queries, before
    there is any choice of them and any padding. Of Faster R-CNN the objects themselves are among them, as in training.
    """
    (target_index,) = samples.target_index
    positive = target_index != BACKGROUND
    boxes = samples.boxes[0, positive]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / image_size_as_box(image_size, boxes)[:2]
    return Places(centers.cpu(), target_index[positive].cpu())


@dataclass(frozen=True)
class Gap:
    """Distances from some of the decoder's queries to a head's positives, L2 of centres as shares of the image.

    mean: over all pairs of the two. nearest: mean over the queries of the distance to the closest positive.
    """

    mean: float
    nearest: float


def gap(queries: Tensor, positives: Tensor) -> Gap | None:
    """queries: (N, 2), positives: (P, 2). None if there is nothing of one of them."""
    if len(queries) == 0 or len(positives) == 0:
        return None
    distances = torch.cdist(queries.double(), positives.double())  # (N, P)
    return Gap(mean=float(distances.mean()), nearest=float(distances.amin(1).mean()))


@dataclass(frozen=True)
class QueryGaps:
    """Means over images. positive, negative: from the decoder's matched queries, and from the others. images: that have
    both, and positives of the head."""

    positive: Gap
    negative: Gap
    images: int


class GapSum:
    """Of one head."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Gap, Gap]] = []

    def add(self, queries: Places, positives: Places) -> None:
        """queries: all of the decoder's in an image, with -1 for those without an object."""
        matched = queries.target_index != BACKGROUND
        gaps = [gap(queries.centers[which], positives.centers) for which in (matched, ~matched)]
        if None not in gaps:
            self._pairs.append((gaps[0], gaps[1]))

    def gaps(self) -> QueryGaps | None:
        if not self._pairs:
            return None
        positive, negative = (
            Gap(*(sum(values) / len(values) for values in zip(*((g.mean, g.nearest) for g in kind), strict=True)))
            for kind in zip(*self._pairs, strict=True)
        )
        return QueryGaps(positive, negative, len(self._pairs))
