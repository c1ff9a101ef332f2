import numpy as np
import pytest
import torch
from PIL import Image

from dinox.analysis import Panel, draw_anchors
from dinox.evaluation.matching import ImageMatches

GRAY = np.full((100, 200, 3), 128, dtype=np.uint8)


def matches(index_vector, anchors, boxes):
    vector = torch.tensor([index_vector], dtype=torch.int32)
    boxes = torch.tensor(boxes).view(-1, 4)
    return ImageMatches("a.png", vector, torch.tensor(anchors), boxes, torch.ones(len(boxes)))


def coloured(path):
    """How many pixels are rather red, and rather blue."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    pixels = pixels[:, : int(0.8 * pixels.shape[1])]  # without the colour bar
    r, _, b = np.moveaxis(pixels, -1, 0)
    return int((r - b > 80).sum()), int((b - r > 80).sum())


def test_long_arrows_are_warm_and_short_ones_cool(tmp_path):
    path = tmp_path / "anchors.png"
    short = matches([0], [[0.4, 0.5, 0.1, 0.1]], [[0.42, 0.5, 0.1, 0.1]])
    draw_anchors(GRAY, [Panel("short", short)], path, longest=1.0)
    red, blue = coloured(path)
    assert red == 0 and blue > 20
    long = matches([0], [[0.1, 0.1, 0.1, 0.1]], [[0.9, 0.2, 0.1, 0.1]])
    draw_anchors(GRAY, [Panel("long", long)], path)
    red, blue = coloured(path)
    assert red > 20 and blue == 0


@pytest.mark.parametrize(
    "panel",
    [
        matches([-1, -1], [[0.5, 0.5, 0.1, 0.1]] * 2, []),
        matches([0], [[0.5, 0.5]], [[0.5, 0.5, 0.2, 0.2]]),
        matches([1], [[1.2, -0.1]], [[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]),
    ],
    ids=["no objects", "a point on its object", "a point outside, and more objects than queries"],
)
def test_odd_matches_are_drawn_too(tmp_path, panel):
    path = tmp_path / "anchors.png"
    draw_anchors(GRAY, [Panel("first", panel), Panel("last", panel)], path)
    assert Image.open(path).width > 1000
