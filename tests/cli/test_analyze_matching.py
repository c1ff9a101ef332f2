"""What `dinox analyze matching` prints about models that the run in test_analyze.py is none of."""

import dataclasses

import torch

from dinox.analysis import LayerScores, MatchingReport, RunCheckpoint, draw_matching
from dinox.cli.analyze_matching import format_report
from dinox.evaluation.matching import GroundTruthImages, ImageMatches, matching_metrics


def report(anchors, *, objects=2, iterations=(5, 10)):
    """Of two checkpoints, on one image, with two queries."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])[:objects]
    vectors = [torch.tensor([row], dtype=torch.int32) for row in ([0, 1], [1, 0])]
    first, last = ([ImageMatches("a.png", v, anchors, boxes, torch.full((objects,), 2000.0))] for v in vectors)
    metrics = [matching_metrics(first), matching_metrics(last, previous=[first[0].index_vector])]
    return MatchingReport(
        checkpoints=[RunCheckpoint(f"{name}.pth", f"{name}.pth", i) for name, i in zip("ab", iterations)],
        metrics=metrics,
        first=first,
        last=last,
        images=GroundTruthImages([{"file_name": "a.png"}], lambda _: {"image": torch.zeros(3, 20, 30)}),
        datasets=["pets"],
        ranked_queries=False,
        input_format="RGB",
        device="cpu",
    )


def header_and_rows(text):
    table = text.split("\n\n")[1].splitlines()
    return " ".join(table[:-2]), [line.split() for line in table[-2:]]


def test_a_model_without_anchors_has_no_distances_and_a_sentence_says_so(tmp_path):
    text = format_report(report(None))
    _, rows = header_and_rows(text)
    assert rows == [["a.pth", "5", "-"], ["b.pth", "10", "2.00"]]
    assert "ATD" not in text and "Its queries have no anchors: no distances." in text
    assert "ranked proposals" not in text
    (curves,) = draw_matching(report(None), tmp_path)
    assert curves.endswith("matching_curves.png")


def test_distances_of_anchor_points_say_that_they_are_of_centres(tmp_path):
    points = torch.tensor([[0.5, 0.5], [0.2, 0.2]])
    text = format_report(report(points))
    header, rows = header_and_rows(text)
    assert "(centres)" in header and "small" not in header  # there is no small object
    assert rows == [["a.pth", "5", "-", "0.0000", "0.0000"], ["b.pth", "10", "2.00", "0.6000", "0.6000"]]
    assert "centres (anchors are points)" in text and "2 objects, 0 small" in text
    assert len(draw_matching(report(points), tmp_path)) == 2


def test_objects_that_no_query_is_left_for_are_counted():
    text = format_report(report(torch.rand(2, 4), objects=3))
    assert "unmatched         1 object, in images with more objects than queries" in text


def test_checkpoints_that_do_not_tell_their_iterations_have_no_curves(tmp_path):
    silent = report(torch.rand(2, 4), iterations=(None, None))
    assert "iterations" not in format_report(silent)
    (picture,) = draw_matching(silent, tmp_path)
    assert picture.endswith("anchors_1_a.png")


def unstable_table(text):
    return [line.split() for line in text.split("Unstable scores")[1].split("\n\n")[1].splitlines()]


def layered(encoder, *, ranked=False):
    """As ``report``, of decoders of two layers: both objects swap their queries in the second one."""
    plain = report(torch.rand(2, 4))
    vectors = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    found = [dataclasses.replace(plain.last[0], target_index=vectors, encoder_index=encoder)]
    return dataclasses.replace(plain, metrics=[matching_metrics(found)] * 2, last=found, ranked_queries=ranked)


def test_unstable_scores_are_printed_layer_by_layer(tmp_path):
    compared = layered(torch.tensor([0, 1]), ranked=True)
    text = format_report(compared)
    assert "(layer 1 is compared with the encoder's proposals)" in text
    assert unstable_table(text) == [["decoder", "layer", "1", "2"], *([f"{n}.pth", "0.00", "100.00"] for n in "ab")]
    assert str(tmp_path / "unstable_scores.png") in draw_matching(compared, tmp_path)


def test_detectors_whose_first_layer_is_compared_with_nothing_say_why():
    text = format_report(layered(None))
    assert "(layer 1 is compared with nothing, for the encoder makes no queries)" in text
    assert unstable_table(text)[1] == ["a.pth", "-", "100.00"]
    assert "the encoder does not classify just the proposals that it selects" in format_report(
        layered(None, ranked=True)
    )


def test_other_runs_may_have_other_numbers_of_layers():
    text = format_report(layered(None), [LayerScores("dino", [1.0, 2.0, 3.0])])
    assert unstable_table(text)[1][1:] == ["-", "100.00", "-"]
    assert unstable_table(text)[-1] == ["dino", "1.00", "2.00", "3.00"]


def test_a_decoder_of_one_layer_without_proposals_has_no_unstable_scores():
    assert "Unstable" not in format_report(report(None))
