"""Images that the augmentation padded: the padding is image to the model, and none of the output."""

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from dinox.data import resize_and_pad
from dinox.evaluation.matching.matches import _pixels_of_file
from dinox.inference.detector import Detector
from dinox.modeling.meta_arch.predictions import in_output_frames

from ..small_models import build_small, make_input


def found(*boxes) -> Instances:
    return Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes)), scores=torch.ones(len(boxes)))


def test_boxes_come_out_in_the_frame_of_the_image_without_its_padding():
    """50 x 100 pixels of the square are image, shown at 200 x 400: four times as large, cut off at 200."""
    boxes = [[10.0, 20.0, 30.0, 40.0], [10.0, 40.0, 30.0, 60.0], [10.0, 60.0, 30.0, 90.0]]
    padded = {"height": 200, "width": 400, "content_size": (50, 100)}
    (output,) = in_output_frames({"instances": [found(*boxes)]}, [padded])
    # The third is in the padding alone.
    assert output["instances"].pred_boxes.tensor.tolist() == [[40, 80, 120, 160], [40, 160, 120, 200]]
    assert output["instances"].image_size == (200, 400)


def test_without_padding_the_frame_is_the_whole_image():
    (output,) = in_output_frames({"instances": [found([10.0, 20.0, 30.0, 40.0])]}, [{"height": 200, "width": 400}])
    assert output["instances"].pred_boxes.tensor.tolist() == [[40, 40, 120, 80]]


def test_targets_are_normalised_by_the_padded_square():
    """The model is told nothing of the padding: a box of half of the square is (.25, .25, .5, .5)."""
    model = build_small()
    given = make_input(64, 64, 1)
    given["instances"].gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 32.0, 32.0]]))
    targets = model.prepare_targets([given | {"content_size": (40, 64)}])
    assert targets.boxes[0, 0].tolist() == [0.25, 0.25, 0.5, 0.5]


def test_a_predictor_tells_the_model_what_is_padding():
    resize = T.AugmentationList(resize_and_pad(size=64))
    prepared = Detector(lambda x: x, resize, "RGB", ("cat",)).prepare(np.zeros((30, 60, 3), dtype=np.uint8), name="x")
    assert prepared["image"].shape == (3, 64, 64)
    assert (prepared["content_size"], prepared["height"], prepared["width"]) == ((32, 64), 30, 60)


def test_areas_of_padded_images_are_those_in_the_image_file():
    """30 x 60 pixels in a square of 64 that they fill in width: with its padding it would be a file of 60 x 60."""
    padded = {"image": torch.zeros(3, 64, 64), "height": 30, "width": 60, "content_size": (32, 64)}
    assert _pixels_of_file(padded) == 3600
    assert _pixels_of_file({**padded, "content_size": (64, 64)}) == 1800
