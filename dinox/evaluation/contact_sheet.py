"""Contact sheets: ground truth beside detections, image by image, in one PNG."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.structures import BoxMode, Instances
from PIL import Image, ImageDraw

from dinox.data.images import read_image
from dinox.evaluation.drawing import (
    Colour,
    Mark,
    class_colours,
    class_name,
    detection_marks,
    draw_marks,
    load_font,
    save_whole,
)

_PAPER, _INK, _FAINT_INK = (250, 250, 250), (25, 25, 25), (110, 110, 110)
_MARGIN, _GAP = 18, 8
_TITLE_SIZE, _CAPTION_SIZE = 20, 13


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
    colours = class_colours(len(class_names), metadata.get("thing_colors", None))
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
    save_whole(_arrange(pairs, title=title, subtitle=subtitle, pairs_per_row=pairs_per_row), Path(path))


def _instances_of(prediction: Instances | Mapping) -> Instances:
    return (prediction if isinstance(prediction, Instances) else prediction["instances"]).to("cpu")


def _ground_truth_marks(dataset_dict: Mapping, class_names: list[str]) -> list[Mark]:
    marks = []
    for annotation in dataset_dict.get("annotations", []):
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        name, is_crowd = class_name(class_names, annotation["category_id"]), bool(annotation.get("iscrowd", 0))
        marks.append(Mark(tuple(box), annotation["category_id"], f"crowd: {name}" if is_crowd else name, is_crowd))
    return marks


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
    image = Image.fromarray(read_image(dataset_dict["file_name"]))
    if tuple(instances.image_size) != (image.height, image.width):
        raise ValueError(
            f"{dataset_dict['file_name']}: expected predictions for height, width {(image.height, image.width)}, got "
            f"{tuple(instances.image_size)}: rescale them to the original image (detector_postprocess)"
        )
    ground_truth = _ground_truth_marks(dataset_dict, class_names)
    detections = detection_marks(instances, class_names, score_threshold=score_threshold)
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
        draw.text((x, 0), caption, fill=_INK, font=load_font(_CAPTION_SIZE))
        pair.paste(picture, (x, caption_height))
    return pair


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _draw_picture(image: Image.Image, marks: list[Mark], colours: list[Colour], cell_size: int) -> Image.Image:
    scale = cell_size / max(image.size)
    picture = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.BICUBIC)
    draw_marks(picture, [mark.scaled(scale) for mark in marks], colours)
    return picture


def _arrange(pairs: list[Image.Image], *, title: str, subtitle: str, pairs_per_row: int) -> Image.Image:
    rows = [pairs[start : start + pairs_per_row] for start in range(0, len(pairs), pairs_per_row)]
    row_heights = [max(pair.height for pair in row) for row in rows]
    header_height = _TITLE_SIZE + _CAPTION_SIZE + 3 * _GAP
    pair_width = pairs[0].width + 2 * _MARGIN  # more room between images than between the pictures of one
    columns = min(pairs_per_row, len(pairs))
    fonts = load_font(_TITLE_SIZE), load_font(_CAPTION_SIZE)
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
