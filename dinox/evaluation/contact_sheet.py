"""Contact sheets: ground truth beside detections, image by image, in one PNG."""

import colorsys
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import detection_utils
from detectron2.structures import BoxMode, Instances
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

_PAPER, _INK, _FAINT_INK, _SHADOW = (250, 250, 250), (25, 25, 25), (110, 110, 110), (0, 0, 0)
_MARGIN, _GAP = 18, 8
_TITLE_SIZE, _CAPTION_SIZE, _LABEL_SIZE = 20, 13, 12
_LINE_WIDTH = 2
_DASH, _HATCH_STEP = 6, 10


@dataclass(frozen=True)
class _Mark:
    """Something to draw on a picture. ``box``: in pixels of the image."""

    box: Rectangle
    class_index: int
    label: str
    is_crowd: bool = False


def draw_contact_sheet(
    dataset_dicts: Sequence[Mapping],
    predictions: Sequence[Instances | Mapping],
    metadata,
    path: str | os.PathLike,
    *,
    score_threshold: float = 0.3,
    title: str = "Ground truth beside detections",
    max_images: int = 12,
    pairs_per_row: int = 2,
    cell_size: int = 340,
) -> None:
    """Write a PNG with the ground truth and the detections of each image side by side.

    Args:
        dataset_dicts: images as detectron2's datasets give them (``file_name``, ``annotations``); the first
            ``max_images`` are drawn.
        predictions: per image the model's ``{"instances": Instances}``, or the Instances, in pixels of the original
            image and with contiguous class indices.
        metadata: of the dataset; ``thing_classes`` names the classes, ``thing_colors`` (optional, RGB in 0..255) gives
            their colours.
        path: the PNG to write; an existing one is replaced when the new one is complete.
        score_threshold: detections with lower scores are left out.
        title: the headline.
        pairs_per_row: images beside each other, each with its two pictures.
        cell_size: longer side of a picture in pixels; smaller images are enlarged, larger ones shrunk.

    Raises ValueError if the numbers of images and predictions differ, or predictions have another image size.
    """
    if len(dataset_dicts) != len(predictions) or not dataset_dicts:
        raise ValueError(
            f"expected one prediction per image, and at least one image, got {len(predictions)} predictions for "
            f"{len(dataset_dicts)} images"
        )
    class_names = list(metadata.get("thing_classes", []))
    colours = _class_colours(metadata)
    pairs = [
        _draw_pair(
            dataset_dict,
            _instances_of(prediction),
            class_names,
            colours,
            score_threshold=score_threshold,
            cell_size=cell_size,
        )
        for dataset_dict, prediction in list(zip(dataset_dicts, predictions, strict=True))[:max_images]
    ]
    subtitle = (
        "left: ground truth (dashed: crowd regions, which the evaluation ignores)    "
        f"right: detections with a score of at least {score_threshold:g}"
    )
    _save_whole(_arrange(pairs, title=title, subtitle=subtitle, pairs_per_row=pairs_per_row), Path(path))


def _instances_of(prediction: Instances | Mapping) -> Instances:
    return (prediction if isinstance(prediction, Instances) else prediction["instances"]).to("cpu")


def _class_colours(metadata) -> list[Colour]:
    given = metadata.get("thing_colors", None)
    if given:
        return [tuple(int(channel) for channel in colour) for colour in given]
    further = range(len(metadata.get("thing_classes", [])) - len(_PALETTE))
    return [*_PALETTE, *(_hue(index * _GOLDEN_RATIO) for index in further)]


def _hue(turn: float) -> Colour:
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(turn % 1, 0.7, 1.0))


def _name(class_names: list[str], class_index: int) -> str:
    return class_names[class_index] if class_index < len(class_names) else f"class {class_index}"


def _ground_truth_marks(dataset_dict: Mapping, class_names: list[str]) -> list[_Mark]:
    marks = []
    for annotation in dataset_dict.get("annotations", []):
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        name, is_crowd = _name(class_names, annotation["category_id"]), bool(annotation.get("iscrowd", 0))
        marks.append(_Mark(tuple(box), annotation["category_id"], f"crowd: {name}" if is_crowd else name, is_crowd))
    return marks


def _detection_marks(instances: Instances, class_names: list[str], score_threshold: float) -> list[_Mark]:
    """Marks with rising scores, so that the best are drawn last and lie on top."""
    detections = zip(
        instances.scores.tolist(), instances.pred_classes.tolist(), instances.pred_boxes.tensor.tolist(), strict=True
    )
    kept = sorted(detection for detection in detections if detection[0] >= score_threshold)
    return [
        _Mark(tuple(box), class_index, f"{_name(class_names, class_index)} {score:.2f}")
        for score, class_index, box in kept
    ]


def _draw_pair(
    dataset_dict: Mapping,
    instances: Instances,
    class_names: list[str],
    colours: list[Colour],
    *,
    score_threshold: float,
    cell_size: int,
) -> Image.Image:
    """Both pictures of one image with their captions."""
    image = Image.fromarray(detection_utils.read_image(dataset_dict["file_name"], format="RGB"))
    if tuple(instances.image_size) != (image.height, image.width):
        raise ValueError(
            f"{dataset_dict['file_name']}: expected predictions for height, width {(image.height, image.width)}, got "
            f"{tuple(instances.image_size)}: rescale them to the original image (detector_postprocess)"
        )
    ground_truth = _ground_truth_marks(dataset_dict, class_names)
    detections = _detection_marks(instances, class_names, score_threshold)
    left, right = (_draw_picture(image, marks, colours, cell_size) for marks in (ground_truth, detections))
    caption_height = _CAPTION_SIZE + _GAP
    pair = Image.new("RGB", (2 * cell_size + _GAP, left.height + caption_height), _PAPER)
    draw = ImageDraw.Draw(pair)
    number_of_objects = sum(not mark.is_crowd for mark in ground_truth)
    captions = (
        f"{Path(dataset_dict['file_name']).name}: {_count(number_of_objects, 'object')}",
        _count(len(detections), "detection"),
    )
    for x, picture, caption in zip((0, cell_size + _GAP), (left, right), captions, strict=True):
        draw.text((x, 0), caption, fill=_INK, font=_font(_CAPTION_SIZE))
        pair.paste(picture, (x, caption_height))
    return pair


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _draw_picture(image: Image.Image, marks: list[_Mark], colours: list[Colour], cell_size: int) -> Image.Image:
    scale = cell_size / max(image.size)
    picture = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.BICUBIC)
    boxes = [tuple(scale * side for side in mark.box) for mark in marks]
    mark_colours = [colours[mark.class_index % len(colours)] for mark in marks]
    draw = ImageDraw.Draw(picture)
    for mark, box, colour in zip(marks, boxes, mark_colours, strict=True):
        if mark.is_crowd:
            _hatch(picture, box, colour)
            _draw_dashed_rectangle(draw, box, colour)
        else:
            _draw_rimmed_rectangle(draw, box, colour)
    taken: list[Rectangle] = []
    for mark, box, colour in reversed(list(zip(marks, boxes, mark_colours, strict=True))):
        taken.append(_draw_label(draw, mark.label, box, colour, picture.size, taken))
    return picture


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


def _draw_rimmed_rectangle(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour) -> None:
    """A line with a dark rim on both sides, visible on a background of its own colour."""
    x0, y0, x1, y1 = (round(side) for side in box)
    x1, y1 = max(x0, x1), max(y0, y1)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_SHADOW, width=_LINE_WIDTH + 2)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=_LINE_WIDTH)


def _draw_dashed_rectangle(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour) -> None:
    x0, y0, x1, y1 = box
    for start_x, start_y, end_x, end_y in ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)):
        length = abs(end_x - start_x) + abs(end_y - start_y)
        for index in range(int(length // _DASH) + 1):
            begin, end = (min(1.0, part * _DASH / max(length, 1e-6)) for part in (index, index + 1))
            ends = [(start_x + part * (end_x - start_x), start_y + part * (end_y - start_y)) for part in (begin, end)]
            draw.line(ends, fill=colour if index % 2 else _SHADOW, width=_LINE_WIDTH)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Rectangle,
    colour: Colour,
    picture_size: tuple[int, int],
    taken: list[Rectangle],
) -> Rectangle:
    """Write ``text`` at the box where it covers least of the labels in ``taken``; return the rectangle it covers."""
    font = _font(_LABEL_SIZE)
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 6, bottom - top + 5
    x0, y0, x1, y1 = box
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
    spot = min(spots, key=lambda spot: sum(_overlap(spot, other) for other in taken))  # the first among equals
    draw.rectangle(spot, fill=colour, outline=_SHADOW)
    luminance = (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000
    draw.text((spot[0] + 3 - left, spot[1] + 3 - top), text, fill=_SHADOW if luminance > 110 else _PAPER, font=font)
    return spot


def _shift_inside(rectangle: Rectangle, picture_size: tuple[int, int]) -> Rectangle:
    x0, y0, x1, y1 = rectangle
    shift_x = max(0.0, -x0) - max(0.0, x1 - (picture_size[0] - 1))
    shift_y = max(0.0, -y0) - max(0.0, y1 - (picture_size[1] - 1))
    return x0 + shift_x, y0 + shift_y, x1 + shift_x, y1 + shift_y


def _overlap(first: Rectangle, second: Rectangle) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def _arrange(pairs: list[Image.Image], *, title: str, subtitle: str, pairs_per_row: int) -> Image.Image:
    rows = [pairs[start : start + pairs_per_row] for start in range(0, len(pairs), pairs_per_row)]
    row_heights = [max(pair.height for pair in row) for row in rows]
    header_height = _TITLE_SIZE + _CAPTION_SIZE + 3 * _GAP
    pair_width = pairs[0].width + 2 * _MARGIN  # more room between images than between the pictures of one
    columns = min(pairs_per_row, len(pairs))
    fonts = _font(_TITLE_SIZE), _font(_CAPTION_SIZE)
    text_width = max(font.getbbox(text)[2] for font, text in zip(fonts, (title, subtitle), strict=True))
    width = max(columns * pair_width, round(text_width) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, header_height + sum(row_heights) + _MARGIN * (len(rows) + 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _GAP), title, fill=_INK, font=fonts[0])
    draw.text((_MARGIN, _TITLE_SIZE + 2 * _GAP), subtitle, fill=_FAINT_INK, font=fonts[1])
    top = header_height + _MARGIN
    for row, height in zip(rows, row_heights, strict=True):
        for column, pair in enumerate(row):
            sheet.paste(pair, (_MARGIN + column * pair_width, top))
        top += height + _MARGIN
    return sheet


def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow < 10.1 has one size only
        return ImageFont.load_default()


def _save_whole(image: Image.Image, path: Path) -> None:
    """Write a PNG such that ``path`` is the old file or the complete new one at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        image.save(partial, format="PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
