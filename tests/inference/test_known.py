"""What is known of an image, through the Predictor: boxes in the image's own frame, classes by name."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from dinox import Predictor
from dinox.checkpoint import describe
from dinox.config import load_config

from ..small_models import SMALL, randomise_heads

NAMES = ["disk", "ring", "square", "triangle", "star", "cross"]


def make_predictor(folder, config: str, *overrides: str) -> Predictor:
    torch.manual_seed(0)
    cfg = load_config(config, [*SMALL, "model.num_classes=6", *overrides])
    weights = {"model": randomise_heads(instantiate(cfg.model)).state_dict(), "dinox": describe(cfg, NAMES)}
    torch.save(weights, folder / "model.pth")
    return Predictor(folder / "model.pth", device="cpu", score_threshold=0)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return make_predictor(tmp_path_factory.mktemp("known"), "dn_detr/known_objects_shapes")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(256, size=(96, 48, 3), dtype=np.uint8)


def test_boxes_are_in_the_frame_of_the_image_and_labels_are_names(predictor, image):
    """The model sees 192 x 96 pixels."""
    found = predictor.with_known(image, boxes=[[10, 20, 30, 60]], labels=["ring"])
    inputs = predictor.detector.prepare(image, name="image")
    assert tuple(inputs["image"].shape) == (3, 192, 96)
    expected = predictor.detector.model([inputs | {"known_boxes": [[20, 40, 60, 120]], "known_labels": [1]}])
    assert torch.equal(found.scores, expected[0]["instances"].scores)
    assert not torch.equal(found.scores, predictor(image).scores)


def test_without_knowledge_it_is_the_plain_call(predictor, image):
    assert torch.equal(predictor.with_known(image).scores, predictor(image).scores)


def test_classes_are_names(tmp_path, image):
    predictor = make_predictor(tmp_path, "dn_detr/known_labels_10ep")
    found = predictor.with_known(image, classes=["star", "ring"])
    assert set(found[found.scores > 0].pred_classes.tolist()) == {1, 4}


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            {"boxes": [[10, 20, 30, 60]], "labels": ["rin"]},
            "image 0: known_labels.*no class 'rin'. Did you mean 'ring'",
        ),
        ({"boxes": [[10, 20, 60, 90]], "labels": ["ring"]}, r"image 0: known_boxes\[0\].*which is 48 x 96 pixels"),
        ({"boxes": [10, 20, 30, 60], "labels": ["ring"]}, r"image 0: .*got shape \(4,\)"),
        ({"classes": ["ring"]}, "take no labels"),
    ],
)
def test_bad_knowledge_is_an_error(predictor, image, known, message):
    with pytest.raises(ValueError, match=message):
        predictor.with_known(image, **known)
