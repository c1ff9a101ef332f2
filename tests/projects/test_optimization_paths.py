"""Table 1 of Stable-DINO, from the real criteria."""

import runpy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from dinox.config import load_config
from dinox.structures import BACKGROUND

SCRIPT = Path(__file__).parents[2] / "projects" / "stable_dino" / "optimization_paths.py"
script = runpy.run_path(str(SCRIPT), run_name="optimization_paths")


def criterion_of(name: str):
    return instantiate(load_config(script[name]).model.criterion)


def test_the_default_loss_has_two_paths_and_stable_matching_has_one():
    """On A and on B where A is matched, then where B is: the signs of the paper's table 1."""
    default = script["pushes_on_a_and_b"](criterion_of("DEFAULT"))
    stable = script["pushes_on_a_and_b"](criterion_of("STABLE"))
    assert torch.tensor(default).sign().tolist() == [1, -1, -1, 1]
    assert torch.tensor(stable).sign().tolist() == [1, -1, -1, -1]


def test_alone_in_its_image_a_badly_placed_match_is_encouraged_after_all():
    stable = criterion_of("STABLE")
    assert script["pushes_on_a_and_b"](stable, with_another_object=False)[3] > 0
    stable.losses["class"].rescale = None
    assert script["pushes_on_a_and_b"](stable, with_another_object=False)[3] < 0


def test_pushes_are_the_focal_losss_gradient_by_hand():
    """By x = logit p: that of 0.25 (1 - p)^2 (-ln p) is -0.25 (1 - p)^2 (1 - p - 2 p ln p), that of
    0.75 p^2 (-ln(1 - p)) is 0.75 p^2 (p - 2 (1 - p) ln(1 - p)); here p = 1/2.
    """
    prediction = script["Prediction"](iou=0.5, score=0.5)
    pushes = script["class_pushes"](criterion_of("DEFAULT"), [prediction, prediction], [0, BACKGROUND])
    by_hand = 0.25 * (0.5 + torch.log(torch.tensor(2.0)).item())
    assert pushes.tolist() == pytest.approx([0.25 * by_hand, -0.75 * by_hand])


def test_the_output_names_predictions_and_pushes(capsys):
    script["main"]()
    out = capsys.readouterr().out
    assert "A: IoU 0.85, score 0.30" in out
    lines = [line.split() for line in out.splitlines()]
    words = [line for line in lines if "restrain" in line]
    assert words[0] == ["encourage", "restrain", "restrain", "encourage"]
    assert words[1] == ["encourage", "restrain", "restrain", "restrain"]


def test_pushes_in_words():
    in_words = script["in_words"]
    assert [in_words(x, 1.0) for x in (0.5, -0.5, 0.05, -0.05, 0.0)] == [
        "encourage",
        "restrain",
        "encourage slightly",
        "restrain slightly",
        "no push",
    ]
