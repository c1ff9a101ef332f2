from itertools import pairwise

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

from dinox.inference import ProgressiveDetector

from ..small_models import build_small, make_input, randomise_heads

FIELDS = ("scores", "pred_classes")


@pytest.fixture(scope="module")
def model():
    return randomise_heads(build_small("dn_detr/known_objects_at_random_shapes")).eval()


@pytest.fixture
def inputs():
    return [make_input(64, 96, 0, seed=0), {**make_input(50, 40, 0, seed=1), "height": 100, "width": 80}]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        a, b = a["instances"], b["instances"]
        assert a.image_size == b.image_size
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert all(torch.equal(a.get(field), b.get(field)) for field in FIELDS)


@pytest.mark.parametrize("options", [{"score_threshold": 1.1}, {"rounds": 1, "score_threshold": 0.0}])
def test_where_nothing_becomes_known_it_is_the_plain_model(model, inputs, options):
    assert_same(ProgressiveDetector(model, **options)(inputs), model(inputs))


def test_sure_detections_stay_and_the_others_are_those_of_a_model_that_knows_them(model, inputs):
    x = inputs[0]
    plain = model([x])[0]["instances"]
    threshold = float(plain.scores[2])
    found = ProgressiveDetector(model, score_threshold=threshold, rounds=2, duplicate_iou=1.0)([x])[0]["instances"]
    assert len(found) == len(plain) and (found.scores.diff() <= 0).all()
    known = {"known_boxes": plain.pred_boxes[:3], "known_labels": plain.pred_classes[:3]}
    known["known_boxes"].clip((64, 96))
    told = model([{**x, **known}])[0]["instances"]
    expected = torch.cat([plain.scores[:3], told.scores]).sort(descending=True).values[: len(plain)]
    torch.testing.assert_close(found.scores, expected, atol=1e-4, rtol=0)  # boxes were rounded to pixels and back


def detections(*found: tuple) -> list[Instances]:
    """Of one image: (box, score, class) each."""
    boxes, scores, classes = zip(*found, strict=True)
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    return [Instances((64, 96), pred_boxes=boxes, scores=torch.tensor(scores), pred_classes=torch.tensor(classes))]


def test_an_object_is_not_found_twice(model, inputs, monkeypatch):
    """Nor does it become known twice; but another class may be found at its place, and its class elsewhere."""
    rounds = [
        detections(([0, 0, 20, 20], 0.9, 1), ([1, 0, 20, 20], 0.8, 2), ([50, 0, 70, 20], 0.3, 1)),
        detections(([0, 1, 20, 20], 0.7, 1), ([1, 0, 20, 20], 0.4, 2), ([50, 0, 70, 20], 0.6, 1)),
    ]
    monkeypatch.setattr(model, "postprocess", lambda predictions, sizes: rounds.pop(0))
    found = ProgressiveDetector(model, score_threshold=0.5, rounds=2)(inputs[:1])[0]["instances"]
    assert found.pred_classes.tolist() == [1, 1, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.4]))


def test_more_rounds_know_more(model, inputs):
    decoded = []
    decode = model.decode

    def counting(*args, known=None, **options):
        decoded.append((0, 0) if known is None else known.counts)
        return decode(*args, known=known, **options)

    model.decode = counting
    try:
        ProgressiveDetector(model, score_threshold=0.9, rounds=3)(inputs)
    finally:
        del model.decode
    assert decoded[0] == (0, 0) and len(decoded) > 1
    assert all(a <= b for before, after in pairwise(decoded) for a, b in zip(before, after, strict=True))


def test_what_the_user_knows_is_kept(model, inputs):
    told = {**inputs[0], "known_boxes": [[5, 5, 40, 40]], "known_labels": [1]}
    assert_same(ProgressiveDetector(model, score_threshold=2.0)([told]), model([told]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": -0.1}, "score_threshold: expected a number of at least 0, got -0.1"),
        ({"rounds": 0}, "rounds: expected a whole number of at least 1, got 0"),
        ({"duplicate_iou": 1.5}, "duplicate_iou: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveDetector(model, **options)


def test_a_model_in_training_mode_is_an_error():
    with pytest.raises(ValueError, match=r"call model\.eval"):
        ProgressiveDetector(build_small("dn_detr/known_objects_at_random_shapes"))([make_input(64, 64, 0)])


def test_models_that_cannot_be_told_objects_are_an_error_before_any_detection():
    with pytest.raises(ValueError, match="needs a model whose matching queries see known objects"):
        ProgressiveDetector(build_small("dn_detr/dn_detr_r50_50ep").eval())([make_input(64, 64, 0)])


def test_what_the_user_has_given_is_not_detected_again(model, inputs):
    x = inputs[0]
    first = model([x])[0]["instances"][:1]
    first.pred_boxes.clip((64, 96))
    given = {"known_boxes": first.pred_boxes, "known_labels": first.pred_classes}
    found = ProgressiveDetector(model, score_threshold=0.0, rounds=2)([{**x, **given}])[0]["instances"]
    same = found[found.pred_classes == first.pred_classes]
    assert (pairwise_iou(same.pred_boxes, first.pred_boxes) <= 0.7).all()
