"""What `dinox analyze matching` prints about models that the run in test_analyze.py is none of."""

import torch

from dinox.analysis import MatchingReport, RunCheckpoint, draw_matching
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
