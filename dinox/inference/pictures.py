"""Detections drawn on their images."""

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from dinox.evaluation.drawing import class_colours, detection_marks, draw_marks

_LEAST_SIDE, _GREATEST_SIDE = 480, 4096
"""Longer side of a picture in pixels: labels are readable on the former, and viewers open the latter."""

_UNIT_SIDE = 900
"""Longer side up to which lines and letters have their usual size; they grow with larger pictures."""

_LABEL_AREA, _LABELS_SHARE, _LEAST_LETTERS = 1300, 0.1, 0.8
"""Pixels that a label of the usual size covers; the share of a picture that all of them may cover, for else letters
shrink; and how far."""


def draw_detections(image: np.ndarray, instances: Instances, class_names: Sequence[str]) -> Image.Image:
    """A picture with the boxes, names and scores of the detections, at the image's size if that can be looked at.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: in its frame, on the CPU.
        class_names: by class index; classes beyond them are numbered.
    """
    return Drawer(class_names).draw(image, instances)


class Drawer:
    """``draw_detections`` for many images of one size, such as a video's: colours and sizes are settled once.

    ``even_sides``: as video encoders need them.
    """

    def __init__(self, class_names: Sequence[str], *, even_sides: bool = False):
        self._class_names = class_names
        self._colours = class_colours(len(class_names))
        self._even_sides = even_sides

    def draw(self, image: np.ndarray, instances: Instances) -> Image.Image:
        height, width = image.shape[:2]
        scale, size = self._scaled(width, height)
        picture = Image.fromarray(image)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        marks = [mark.scaled(scale) for mark in detection_marks(instances, self._class_names)]
        draw_marks(picture, marks, self._colours, size=_letter_size(size, len(marks)))
        return picture

    def _scaled(self, width: int, height: int) -> tuple[float, tuple[int, int]]:
        """The factor, and (width, height) of the picture."""
        longer = max(width, height)
        scale = min(max(longer, _LEAST_SIDE), _GREATEST_SIDE) / longer
        step = 2 if self._even_sides else 1
        return scale, tuple(max(step, round(side * scale / step) * step) for side in (width, height))


def _letter_size(picture_size: tuple[int, int], num_labels: int) -> float:
    largest = max(1.0, max(picture_size) / _UNIT_SIDE)
    room = _LABELS_SHARE * picture_size[0] * picture_size[1]
    return max(_LEAST_LETTERS, min(largest, (room / (_LABEL_AREA * max(1, num_labels))) ** 0.5))
