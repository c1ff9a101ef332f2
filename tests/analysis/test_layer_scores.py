"""The bar plot of unstable scores."""

import json

import pytest
from PIL import Image

from dinox.analysis import LayerScores, draw_layer_scores, read_layer_scores
from dinox.analysis.curves import COLOURS


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def pixels(path):
    return {colour: count for count, colour in Image.open(path).convert("RGB").getcolors(1 << 24)}


def test_every_checkpoint_has_a_colour_and_bars_as_high_as_its_scores(tmp_path):
    groups = [LayerScores("dino", [20.0, 10.0, 10.0]), LayerScores("stable", [10.0, 5.0, 5.0])]
    draw_layer_scores(groups, tmp_path / "bars.png")
    found = pixels(tmp_path / "bars.png")
    # The colours' areas are as the sums of the scores; edges, and the patches in the legend, are a few per cent.
    assert found[rgb(COLOURS[0])] / found[rgb(COLOURS[1])] == pytest.approx(2, rel=0.1)


def test_layers_without_any_score_are_left_out_and_others_keep_their_places(tmp_path):
    draw_layer_scores([LayerScores("a", [None, 10.0]), LayerScores("b", [None, None, 10.0])], tmp_path / "bars.png")
    assert {rgb(COLOURS[0]), rgb(COLOURS[1])} <= pixels(tmp_path / "bars.png").keys()
    with pytest.raises(ValueError, match="expected at least one unstable score to draw, got none"):
        draw_layer_scores([LayerScores("a", [None])], tmp_path / "none.png")


def test_many_checkpoints_have_different_colours(tmp_path):
    draw_layer_scores([LayerScores(f"model_{i}", [10.0, 10.0]) for i in range(12)], tmp_path / "bars.png")
    found = pixels(tmp_path / "bars.png")
    assert sum(count > 500 and max(colour) - min(colour) > 30 for colour, count in found.items()) == 12


def test_results_of_one_checkpoint_are_named_by_their_file_and_of_several_by_both(tmp_path):
    rows = [{"name": f"{name}.pth", "unstable_scores": [None, 1]} for name in "ab"]
    (tmp_path / "dino.json").write_text(json.dumps({"checkpoints": rows}))
    assert read_layer_scores(tmp_path / "dino.json") == [
        LayerScores("dino: a.pth", [None, 1.0]),
        LayerScores("dino: b.pth", [None, 1.0]),
    ]
    (tmp_path / "dino.json").write_text(json.dumps({"checkpoints": rows[:1]}))
    assert read_layer_scores(tmp_path / "dino.json") == [LayerScores("dino", [None, 1.0])]
    (tmp_path / "dino.json").write_text(json.dumps({"checkpoints": [{"name": "old.pth"}]}))
    with pytest.raises(ValueError, match=r"dino\.json: expected results with unstable scores"):
        read_layer_scores(tmp_path / "dino.json")
