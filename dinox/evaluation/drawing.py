"""Boxes with labels on pictures: what contact sheets and predictions look like."""

import colorsys
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# Told apart on most pictures; further classes get colours by the golden ratio around the hue circle.
_PALETTE: tuple[Colour, ...] = (
    (255, 214, 0),
    (0, 200, 255),
    (255, 90, 80),
    (90, 235, 90),
    (255, 130, 235),
    (255, 150, 30),
    (170, 150, 255),
    (255, 255, 255),
)
_GOLDEN_RATIO = 0.618034

_SHADOW: Colour = (0, 0, 0)
_LIGHT: Colour = (250, 250, 250)
_DASH, _HATCH_STEP = 6, 10
_LABEL_SIZE, _LINE_WIDTH = 12, 2
_MOST_COVERED = 0.25  # of a label that is still written, by others

_JPEG_OPTIONS = {"quality": 92, "subsampling": 0}


@dataclass(frozen=True)
class Mark:
    """Something to draw on a picture. ``box``: in pixels of the picture."""

    box: Rectangle
    class_index: int
    label: str
    is_crowd: bool = False

    def scaled(self, factor: float) -> "Mark":
        x0, y0, x1, y1 = (factor * side for side in self.box)
        return Mark((x0, y0, x1, y1), self.class_index, self.label, self.is_crowd)


def class_colours(num_classes: int, given: Sequence[Sequence[int]] | None = None) -> list[Colour]:
    """RGB, 0..255, by class index; ``given``: a dataset's own, ``thing_colors`` of its metadata."""
    if given:
        return [tuple(int(channel) for channel in colour) for colour in given]
    return [*_PALETTE, *(_hue(index * _GOLDEN_RATIO) for index in range(num_classes - len(_PALETTE)))]


def class_name(class_names: Sequence[str], class_index: int) -> str:
    return class_names[class_index] if class_index < len(class_names) else f"class {class_index}"


def detection_marks(instances: Instances, class_names: Sequence[str], *, score_threshold: float = 0.0) -> list[Mark]:
    """Marks with rising scores, so that the best are drawn last and lie on top."""
    detections = zip(
        instances.scores.tolist(), instances.pred_classes.tolist(), instances.pred_boxes.tensor.tolist(), strict=True
    )
    kept = sorted(detection for detection in detections if detection[0] >= score_threshold)
    return [
        Mark(tuple(box), class_index, f"{class_name(class_names, class_index)} {score:.2f}")
        for score, class_index, box in kept
    ]


def draw_marks(picture: Image.Image, marks: Sequence[Mark], colours: Sequence[Colour], *, size: float = 1.0) -> None:
    """Draw boxes and their labels on an RGB picture, in place.

    Labels are put where they cover least of each other; where there is no room, those with the higher places in
    ``marks`` are written, and the colours tell the classes of the others. ``size``: of lines and letters; 1 suits
    pictures of a few hundred pixels.
    """
    line_width = max(1, round(_LINE_WIDTH * size))
    mark_colours = [colours[mark.class_index % len(colours)] for mark in marks]
    draw = ImageDraw.Draw(picture)
    for mark, colour in zip(marks, mark_colours, strict=True):
        if mark.is_crowd:
            _hatch(picture, mark.box, colour)
            _draw_dashed_rectangle(draw, mark.box, colour, line_width)
        else:
            _draw_rimmed_rectangle(draw, mark.box, colour, line_width)
    taken: list[Rectangle] = []
    for mark, colour in reversed(list(zip(marks, mark_colours, strict=True))):
        _draw_label(draw, mark, colour, picture.size, taken, size)


def load_font(size: float) -> ImageFont.ImageFont:
    """``size``: height of the letters in pixels."""
    try:
        return ImageFont.load_default(round(size))
    except TypeError:  # Pillow < 10.1 has one size only
        return ImageFont.load_default()


def save_whole(image: Image.Image, path: Path) -> None:
    """Write a picture such that ``path`` is the old file or the complete new one at any time; folders are made.

    It becomes a JPEG or a PNG by the name of ``path``.
    """
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        image.save(partial, **({"format": "JPEG", **_JPEG_OPTIONS} if is_jpeg else {"format": "PNG"}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _hue(turn: float) -> Colour:
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(turn % 1, 0.7, 1.0))


def _hatch(picture: Image.Image, box: Rectangle, colour: Colour) -> None:
    """Diagonal lines across the box, in place."""
    x0, y0, x1, y1 = (round(side) for side in box)
    width, height = x1 - x0, y1 - y0
    if width < 1 or height < 1:
        return
    lines = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(lines)
    for start in range(0, width + height, _HATCH_STEP):
        draw.line((start, 0, start - height, height), fill=150, width=1)
    picture.paste(colour, (x0, y0, x1, y1), mask=lines)


def _draw_rimmed_rectangle(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line_width: int) -> None:
    """A line with a dark rim on both sides, visible on a background of its own colour."""
    x0, y0, x1, y1 = (round(side) for side in box)
    x1, y1 = max(x0, x1), max(y0, y1)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_SHADOW, width=line_width + 2)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=line_width)


def _draw_dashed_rectangle(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line_width: int) -> None:
    x0, y0, x1, y1 = box
    for start_x, start_y, end_x, end_y in ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)):
        length = abs(end_x - start_x) + abs(end_y - start_y)
        for index in range(int(length // _DASH) + 1):
            begin, end = (min(1.0, part * _DASH / max(length, 1e-6)) for part in (index, index + 1))
            ends = [(start_x + part * (end_x - start_x), start_y + part * (end_y - start_y)) for part in (begin, end)]
            draw.line(ends, fill=colour if index % 2 else _SHADOW, width=line_width)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    mark: Mark,
    colour: Colour,
    picture_size: tuple[int, int],
    taken: list[Rectangle],
    size: float,
) -> None:
    """Write the label at the box where it covers least of the labels in ``taken``, and add it to them."""
    font, padding = load_font(_LABEL_SIZE * size), 3 * size
    left, top, right, bottom = font.getbbox(mark.label)
    width, height = right - left + 2 * padding, bottom - top + 2 * padding
    x0, y0, x1, y1 = mark.box
    corners = [
        (x0, y0 - height),
        (x0, y1),
        (x1 - width, y0 - height),
        (x1 - width, y1),
        (x1, y0),
        (x0 - width, y0),
        (x0, y0),
        (x0, y1 - height),
    ]
    spots = [_shift_inside((x, y, x + width, y + height), picture_size) for x, y in corners]
    covered = [sum(_overlap(spot, other) for other in taken) for spot in spots]
    spot = spots[covered.index(min(covered))]  # the first among equals
    if min(covered) > _MOST_COVERED * width * height:
        return
    taken.append(spot)
    draw.rectangle(spot, fill=colour, outline=_SHADOW)
    luminance = (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000
    ink = _SHADOW if luminance > 110 else _LIGHT
    draw.text((spot[0] + padding - left, spot[1] + padding - top), mark.label, fill=ink, font=font)


def _shift_inside(rectangle: Rectangle, picture_size: tuple[int, int]) -> Rectangle:
    x0, y0, x1, y1 = rectangle
    shift_x = max(0.0, -x0) - max(0.0, x1 - (picture_size[0] - 1))
    shift_y = max(0.0, -y0) - max(0.0, y1 - (picture_size[1] - 1))
    return x0 + shift_x, y0 + shift_y, x1 + shift_x, y1 + shift_y


def _overlap(first: Rectangle, second: Rectangle) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
