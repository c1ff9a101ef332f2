"""Test-time augmentation: what views a model gets, and what becomes of its detections."""

import weakref

import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from torch import nn

from dinox import Predictor
from dinox.inference import AugmentedDetector, NMSFusion, View, make_views
from tests.inference.marker import MarkerDetector, picture
from tests.small_models import build_small, make_input

RED, BLUE = (10, 20, 30, 50), (50, 5, 70, 25)


def marked(**marks) -> dict:
    pixels = picture(height=60, width=80, red=RED, **marks)
    return {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "height": 60, "width": 80}


class Seen(MarkerDetector):
    """Remembers its inputs."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, batched_inputs):
        self.inputs.append(batched_inputs)
        return super().forward(batched_inputs)


def augmented(model, *views, **options) -> AugmentedDetector:
    return AugmentedDetector(model=model, views=views, **options).eval()


def boxes_of(outputs) -> list:
    return outputs[0]["instances"].pred_boxes.tensor.tolist()


@pytest.mark.parametrize(
    "view, tolerance",
    [
        (View(flip=True), 0),
        # A pixel of the resized image is half of one, or two; at a marker's edge it is of both colours.
        (View(scale=2), 0.5),
        (View(scale=2, flip=True), 0.5),
        (View(scale=0.5), 2),
        (View(scale=0.5, flip=True), 2),
    ],
    ids=str,
)
def test_a_view_alone_finds_the_objects_where_they_are(view, tolerance):
    found = boxes_of(augmented(MarkerDetector(), view)([marked(blue=BLUE)]))
    assert np.abs(np.array(found) - np.array([RED, BLUE])).max() <= tolerance


def test_a_flip_maps_back_exactly():
    boxes = torch.tensor([[0.1, 3.0, 20.7, 9.0], [0.0, 0.0, 80.0, 60.0]])
    mirrored = torch.stack([80 - boxes[:, 2], boxes[:, 1], 80 - boxes[:, 0], boxes[:, 3]], 1)
    found = Instances((60, 80), pred_boxes=Boxes(mirrored), scores=torch.ones(2), pred_classes=torch.zeros(2))
    back = View(flip=True).undone(found).pred_boxes.tensor
    # 80 - (80 - x) rounds once to a float32 of less than 80.
    assert torch.allclose(back, boxes, rtol=0, atol=2**-18) and back[1].tolist() == [0, 0, 80, 60]
    assert torch.equal(View(scale=2).undone(found).pred_boxes.tensor, mirrored)


def test_one_view_without_flips_is_the_plain_result_bit_for_bit():
    model = build_small().eval()
    images = [make_input(64, 96, 0, seed=1), make_input(80, 64, 0, seed=2)]
    with torch.no_grad():
        plain = model(images)
    for options in ({}, {"fusion": NMSFusion()}):
        single = AugmentedDetector(model=model, views=make_views((1,), flip=False), **options)(images)
        for ours, theirs in zip(single, plain, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs["instances"].get_fields().items():
                value, other = (getattr(x, "tensor", x) for x in (value, ours["instances"].get(name)))
                assert torch.equal(value, other)


def test_a_transformer_gets_its_own_detections_back_in_their_order():
    """Boxes move; scores and classes are those of the main view."""
    model, images = build_small().eval(), [make_input(64, 96, 0, seed=1), make_input(80, 64, 0, seed=2)]
    with torch.no_grad():
        plain = model(images)
    for ours, theirs in zip(AugmentedDetector(model=model, views=make_views((1, 1.5)))(images), plain, strict=True):
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.pred_classes, theirs.pred_classes)
        assert ours.image_size == theirs.image_size and ours.pred_boxes.tensor.isfinite().all()
        assert not torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_the_model_sees_one_view_of_the_whole_batch_at_a_time():
    model = Seen()
    views = make_views((1, 0.5))
    assert [(view.scale, view.flip) for view in views] == [(1, False), (1, True), (0.5, False), (0.5, True)]
    outputs = augmented(model, *views)([marked(), marked(blue=BLUE)])
    assert model.batch_sizes == [2, 2, 2, 2] and [len(output["instances"]) for output in outputs] == [1, 2]
    plain, flipped, small, small_flipped = (batch[0]["image"] for batch in model.inputs)
    assert torch.equal(plain, marked()["image"]) and torch.equal(flipped, plain.flip(-1))
    assert small.shape == (3, 30, 40) and torch.equal(small_flipped, small.flip(-1)) and small.dtype == torch.uint8
    assert all((x["height"], x["width"]) == (60, 80) for batch in model.inputs for x in batch)


def test_views_are_gone_before_the_next_one_is_made():
    alive, most = set(), []

    class Counting(MarkerDetector):
        def forward(self, batched_inputs):
            for x in batched_inputs:
                key = id(x["image"])
                alive.add(key)
                weakref.finalize(x["image"], alive.discard, key)
            most.append(len(alive))
            return super().forward(batched_inputs)

    augmented(Counting(), *make_views((0.5, 1.5, 2)))([marked()])
    assert len(most) == 6 and max(most) <= 2  # the last one, until its successor is there


def test_without_a_frame_detections_are_in_that_of_the_image():
    x = {key: value for key, value in marked().items() if key == "image"}
    assert boxes_of(augmented(MarkerDetector(), View(scale=2), View(flip=True))([x])) == [pytest.approx(RED, abs=0.5)]


def test_the_frame_may_be_another_than_the_images():
    found = boxes_of(augmented(MarkerDetector(), View(flip=True))([marked() | {"height": 120, "width": 160}]))
    assert found == [[2 * side for side in RED]]


def test_labels_that_are_known_go_along_and_boxes_that_are_known_are_refused():
    model = Seen()
    augmented(model, View(flip=True))([marked() | {"known_labels": [1], "image_id": 7, "instances": "no"}])
    assert model.inputs[0][0]["known_labels"] == [1] and "instances" not in model.inputs[0][0]
    for key in ("known_boxes", "content_size"):
        with pytest.raises(ValueError, match=f"would have to move the input's {key}"):
            augmented(model, View(flip=True))([marked() | {key: None}])


def test_detectron2s_inference_takes_it_and_puts_it_into_eval_mode():
    class Noting:
        def reset(self):
            self.modes, self.found = [], []

        def process(self, inputs, outputs):
            self.found.append(boxes_of(outputs))

        def evaluate(self):
            return {}

    evaluator, model = Noting(), AugmentedDetector(model=MarkerDetector(), views=make_views())
    assert model.training and isinstance(model, nn.Module)
    inference_on_dataset(model, [[marked()]], evaluator)
    assert evaluator.found == [[list(RED)]] and model.model.training  # and back


def test_a_predictor_looks_several_times(weights):
    options = {"allow_targets": ("tests.inference.marker",), "device": "cpu"}
    views = make_views((1, 2))
    predictor = Predictor(weights, wrapper=lambda model: AugmentedDetector(model=model, views=views), **options)
    found = predictor(picture(red=RED))
    assert predictor.detector.model.model.batch_sizes == [1] * 4
    # It sees the image at 64/60 of its size: the marker's edges fall between pixels.
    assert found.pred_boxes.tensor.tolist() == [pytest.approx(RED, abs=1)]


@pytest.mark.parametrize("field", ["scale", "weight"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_view_that_is_none_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected a number above 0"):
        View(**{field: value})


def test_no_views_at_all_are_refused():
    with pytest.raises(ValueError, match="views: expected at least one"):
        AugmentedDetector(model=MarkerDetector(), views=())
