"""Drawn detections can be looked at, whatever the image's size."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from dinox.inference.pictures import draw_detections
from tests.inference.marker import picture


def instances(height, width, *, number=1):
    boxes = torch.tensor([[0.2 * width, 0.3 * height, 0.6 * width, 0.8 * height]]).repeat(number, 1)
    return Instances(
        (height, width),
        pred_boxes=Boxes(boxes),
        scores=torch.linspace(0.9, 0.5, number),
        pred_classes=torch.zeros(number, dtype=torch.int64),
    )


@pytest.mark.parametrize(
    "size, expected",
    [((100, 50), (480, 240)), ((1, 1), (480, 480)), ((600, 800), (600, 800)), ((10, 8192), (5, 4096))],
)
def test_small_images_are_enlarged_and_huge_ones_shrunk(size, expected):
    height, width = size
    drawn = draw_detections(picture(height=height, width=width), instances(height, width), ["a"])
    assert (drawn.height, drawn.width) == expected


def test_an_image_is_not_changed():
    image = picture()
    before = image.copy()
    draw_detections(image, instances(60, 80), ["a"])
    assert (image == before).all()


def test_detections_without_a_name_and_many_at_one_place_are_drawn():
    plain = picture(height=600, width=800)
    drawn = [draw_detections(plain, instances(600, 800, number=number), []) for number in (0, 1, 300)]
    assert len({picture.tobytes() for picture in drawn}) == 3


def changed_pixels(number):
    plain = picture(height=600, width=800)
    drawn = draw_detections(plain, instances(600, 800, number=number), ["a long name of a class"])
    return (plain != drawn).any(2).sum()


def test_labels_do_not_cover_a_crowded_picture():
    assert changed_pixels(300) < 6 * changed_pixels(1)
