"""The augmentation of DETR and its successors, made of detectron2's."""

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np

DETR_SHORT_EDGES = tuple(range(480, 801, 32))
DETR_MAX_SIZE = 1333
DETR_CROP_SHORT_EDGES = (400, 500, 600)
DETR_CROP_SIZE = (384, 600)

CROP_MAX_SIZE = 4000
"""Longest edge before the crop. DETR's code has no limit there: an image of 3 x 4000 pixels would become 400 x 533,333.
Images of up to 6.6 : 1 are not touched by it."""


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, whose result has no side of 0 pixels: a line of 1 x 4000 becomes 1 x 1333, whatever its aspect."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):
            resize.new_h, resize.new_w = max(resize.new_h, 1), max(resize.new_w, 1)
        return resize


class OneOf(T.Augmentation):
    """Apply one of several lists of augmentations, drawn anew for each image; boxes and masks follow it.

    Args:
        branches: lists of augmentations.
        probabilities: one for each branch; they sum to 1.
    """

    def __init__(self, branches: Sequence[Sequence[T.Augmentation]], *, probabilities: Sequence[float]) -> None:
        super().__init__()
        if len(branches) != len(probabilities) or not np.isclose(sum(probabilities), 1) or min(probabilities) < 0:
            raise ValueError(
                f"probabilities: expected {len(branches)} (one per branch) with the sum 1, got {list(probabilities)}"
            )
        self.branches = [T.AugmentationList(branch) for branch in branches]
        self.probabilities = [float(probability) for probability in probabilities]

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        drawn = np.random.choice(len(self.branches), p=self.probabilities)
        return self.branches[drawn](aug_input)

    def __repr__(self) -> str:
        return f"OneOf({self.branches}, probabilities={self.probabilities})"

    __str__ = __repr__


def detr_augmentation(
    *,
    short_edges: Sequence[int] = DETR_SHORT_EDGES,
    max_size: int = DETR_MAX_SIZE,
    crop_short_edges: Sequence[int] = DETR_CROP_SHORT_EDGES,
    crop_size: Sequence[int] = DETR_CROP_SIZE,
    crop_max_size: int = CROP_MAX_SIZE,
    crop_probability: float = 0.5,
    flip_probability: float = 0.5,
) -> list[T.Augmentation]:
    """Flip, then either resize, or resize, crop and resize again (DETR, section 4 and its code).

    Args:
        short_edges: the shorter edge after the (last) resize, drawn uniformly from these, in pixels.
        max_size: the longer edge is not made longer than this.
        crop_short_edges: the shorter edge before the crop, drawn likewise.
        crop_size: (least, greatest) length of each side of the crop, each drawn uniformly and cut to the image's.
        crop_max_size: as ``max_size``, before the crop.
        crop_probability: of the branch with the crop; 0 leaves it out.
        flip_probability: of the horizontal flip.
    """
    resize = _resize(short_edges, max_size)
    crop = T.RandomCrop("absolute_range", tuple(crop_size))
    cropped = [_resize(crop_short_edges, crop_max_size), crop, resize]
    one_of = OneOf([[resize], cropped], probabilities=(1 - crop_probability, crop_probability))
    return [T.RandomFlip(prob=flip_probability), one_of if crop_probability > 0 else resize]


def resize_augmentation(
    *, short_edge: int = DETR_SHORT_EDGES[-1], max_size: int = DETR_MAX_SIZE
) -> list[T.Augmentation]:
    """What evaluation does: the shorter edge to ``short_edge`` pixels, the longer one to at most ``max_size``."""
    return [_resize([short_edge], max_size)]


def _resize(short_edges: Sequence[int], max_size: int) -> ResizeShortestEdge:
    return ResizeShortestEdge(tuple(int(edge) for edge in short_edges), max_size, sample_style="choice")
