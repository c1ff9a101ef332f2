"""Distances between heads, positives and scores by hand."""

import math

import pytest
import torch

from dinox.analysis.collaboration import Gap, Places, gap, kl_matrix, mean_to_others, positive_score, positives_of
from dinox.analysis.collaboration.conflicts import ConflictSum
from dinox.analysis.collaboration.positives import GapSum
from dinox.structures import HeadSamples

HALF, SKEWED = (torch.tensor([[p, 1 - p]], dtype=torch.float64) for p in (0.5, 0.25))
HALF_FROM_SKEWED = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
SKEWED_FROM_HALF = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)


def test_equal_maps_are_no_distance_apart_and_the_divergence_has_a_direction():
    matrix = kl_matrix([HALF, HALF, SKEWED])
    expected = [
        [0, 0, HALF_FROM_SKEWED],
        [0, 0, HALF_FROM_SKEWED],
        [SKEWED_FROM_HALF, SKEWED_FROM_HALF, 0],
    ]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))


def test_the_average_of_a_head_leaves_itself_out():
    matrix = torch.tensor([[0.0, 2.0, 4.0], [1.0, 0.0, 1.0], [5.0, 7.0, 0.0]])
    assert mean_to_others(matrix).tolist() == [3.0, 1.0, 6.0]
    matrix[0, 1] = torch.nan
    assert mean_to_others(matrix).tolist() == [4.0, 1.0, 6.0]


def test_distances_are_means_over_the_images_in_which_both_heads_have_a_map():
    total = ConflictSum(["DETR", "atss", "roi"])
    total.add({"DETR": HALF, "atss": SKEWED})
    total.add({"DETR": HALF, "atss": HALF, "roi": HALF})
    total.add({"roi": HALF})
    total.add({})
    assert total.images.tolist() == [[2, 2, 1], [2, 2, 1], [1, 1, 2]]
    matrix = total.matrix()
    assert matrix[0, 1] == pytest.approx(HALF_FROM_SKEWED / 2) and matrix[1, 0] == pytest.approx(SKEWED_FROM_HALF / 2)
    assert matrix[0, 2] == matrix[1, 2] == 0
    assert ConflictSum(["DETR", "atss"]).matrix().isnan().all()


# ------------------------------------------------------------------------------------------------------------ positives


def test_positives_are_centres_of_samples_with_an_object_as_shares_of_the_image():
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 6.0, 6.0], [10.0, 0.0, 30.0, 10.0]]])
    samples = HeadSamples(boxes=boxes, target_index=torch.tensor([[1, -1, 0]]), features_at=None)
    places = positives_of(samples, (20, 40))
    torch.testing.assert_close(places.centers, torch.tensor([[5 / 40, 10 / 20], [20 / 40, 5 / 20]]))
    assert places.target_index.tolist() == [1, 0]
    torch.testing.assert_close(places.of_object(0), torch.tensor([[0.5, 0.25]]))


def test_a_gap_is_the_mean_over_all_pairs_and_over_the_nearest_ones():
    queries = torch.tensor([[0.0, 0.0], [0.3, 0.0]])
    positives = torch.tensor([[0.0, 0.4], [0.3, 0.4]])  # distances .4, .5 and .5, .4
    found = gap(queries, positives)
    assert found.mean == pytest.approx(0.45) and found.nearest == pytest.approx(0.4)
    assert gap(queries[:0], positives) is None and gap(queries, positives[:0]) is None


def test_gaps_of_matched_and_of_other_queries_are_means_over_images():
    positives = Places(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    total = GapSum()
    for near in (0.1, 0.3):
        total.add(Places(torch.tensor([[near, 0.0], [0.0, 0.8]]), torch.tensor([0, -1])), positives)
    total.add(Places(torch.tensor([[0.5, 0.5]]), torch.tensor([-1])), positives)  # nothing matched: not counted
    gaps = total.gaps()
    assert gaps.images == 2
    assert gaps.positive == Gap(pytest.approx(0.2), pytest.approx(0.2))
    assert gaps.negative == Gap(pytest.approx(0.8), pytest.approx(0.8))
    assert GapSum().gaps() is None


def test_a_head_is_asked_for_the_logits_of_its_positives_for_their_objects_classes():
    logits = torch.arange(12.0).view(4, 3).requires_grad_()
    score = positive_score(logits, torch.tensor([1, -1, 0, 1]), labels=torch.tensor([2, 0]))
    assert score == (0 + 8 + 9) / 3  # classes 0, 2 and 0 of rows 0, 2 and 3
    score.backward()
    assert logits.grad.nonzero().tolist() == [[0, 0], [2, 2], [3, 0]]
    assert positive_score(logits, torch.full((4,), -1), labels=torch.tensor([2, 0])) is None
