"""Large-scale jitter (Ghiasi et al. 2021, section 3): resize by a factor of a wide range, crop, pad to a square.

Made of detectron2's ``ResizeScale`` and of a crop of our own: that of detectron2's ``FixedSizeCrop`` draws one number
for both directions, so that its crops lie on the image's diagonal, and what it pads masks with depends on the version.

The square is what the model takes for the image. Its padding has the colour 114 before normalisation, is no padding to
the attention, and boxes are normalised by the square's side, as in Co-DETR's code ("with_attn_mask" is False there).
"""

import math

import detectron2.data.transforms as T
import numpy as np
from fvcore.transforms.transform import CropTransform, PadTransform

from dinox.utils.ranges import check_range, check_whole, is_number

JITTER_SCALES = (0.1, 2.0)
PAD_VALUE = 114
"""Of all channels, 0..255 (Co-DETR's code)."""

MIN_BOX_SIDE = 1e-2
"""Pixels; what is left of a box after the crop has to be larger (Co-DETR's code). For ``DetectionMapper``."""


class ResizeScale(T.ResizeScale):
    """detectron2's, whose result has no side of 0 pixels, whatever the image's aspect."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        resize.new_h, resize.new_w = max(int(resize.new_h), 1), max(int(resize.new_w), 1)
        return resize


class CropAndPad(T.Augmentation):
    """A random crop of ``height`` x ``width`` pixels, or of what there is, then padding to the right and below.

    Places are drawn uniformly, for both directions apart. Masks are padded with 0.

    Args:
        height, width: of the result, in pixels.
        pad_value: of all channels.
    """

    def __init__(self, *, height: int, width: int, pad_value: float = PAD_VALUE) -> None:
        super().__init__()
        self._init(locals())
        check_whole("height", height, 1)
        check_whole("width", width, 1)
        check_range("pad_value", pad_value, 0, 255)

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        h, w = image.shape[:2]
        kept_h, kept_w = min(h, self.height), min(w, self.width)
        top, left = draw_corner(h - kept_h), draw_corner(w - kept_w)
        crop = CropTransform(left, top, kept_w, kept_h, orig_w=w, orig_h=h)
        pad = PadTransform(
            0, 0, self.width - kept_w, self.height - kept_h, kept_w, kept_h, self.pad_value, seg_pad_value=0
        )
        return T.TransformList([crop, pad])


def draw_corner(spare: int) -> int:
    """Where a crop begins: 0 to ``spare`` pixels, all alike."""
    return int(np.random.randint(spare + 1))


def large_scale_jitter(
    *,
    size: int = 1024,
    min_scale: float = JITTER_SCALES[0],
    max_scale: float = JITTER_SCALES[1],
    pad_value: float = PAD_VALUE,
    flip_probability: float = 0.5,
) -> list[T.Augmentation]:
    """Flip; resize so that the image fits into ``scale * size`` squared; crop and pad to ``size`` squared.

    Args:
        size: of the square in pixels; 1024, 1280 or 1536 in Co-DETR's recipes.
        min_scale, max_scale: the range that ``scale`` is drawn from uniformly.
        pad_value: of the padding, in all channels.
        flip_probability: of the horizontal flip.
    """
    check_whole("size", size, 1)
    check_range("flip_probability", flip_probability, 0, 1)
    if not (is_number(min_scale) and is_number(max_scale) and 0 < min_scale <= max_scale < math.inf):
        raise ValueError(
            f"min_scale, max_scale: expected 0 < min_scale <= max_scale, got {min_scale!r} and {max_scale!r}"
        )
    return [
        T.RandomFlip(prob=flip_probability),
        ResizeScale(min_scale, max_scale, size, size),
        CropAndPad(height=size, width=size, pad_value=pad_value),
    ]


def resize_and_pad(*, size: int = 1024, pad_value: float = PAD_VALUE) -> list[T.Augmentation]:
    """What evaluation does after training with large-scale jitter: fit the image into the square, and pad it."""
    check_whole("size", size, 1)
    return [ResizeScale(1.0, 1.0, size, size), CropAndPad(height=size, width=size, pad_value=pad_value)]


def content_size(transforms: T.TransformList, original_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the part of an augmented image that is no padding to the right and below, in whole pixels.

    transforms: that were applied. original_size, size: (height, width) of the image before and after.
    """
    box = transforms.apply_box(np.array([[0, 0, original_size[1], original_size[0]]], dtype=np.float64))[0]
    height, width = (min(max(round(float(side)), 1), whole) for side, whole in zip(box[:1:-1], size))
    return height, width
