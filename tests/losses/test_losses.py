"""Loss parts against values worked out by hand."""

import math

import pytest
import torch

from dinox.losses import (
    ExactGIoULoss,
    FocalLoss,
    GIoULoss,
    L1Loss,
    QualityFocalLoss,
    SoftmaxLoss,
    distribution_focal_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
)
from dinox.structures import MatchedPredictions, Targets


def make_matched(boxes: list, target_index: list, logits: torch.Tensor | None = None) -> MatchedPredictions:
    """One layer and one image with one target: class 1, box (0.5, 0.5, 0.4, 0.4)."""
    targets = Targets.from_lists([torch.tensor([1])], [torch.tensor([[0.5, 0.5, 0.4, 0.4]])])
    boxes = torch.tensor(boxes)[None, None].requires_grad_()
    logits = torch.zeros(1, 1, boxes.shape[2], 2) if logits is None else logits
    return MatchedPredictions.pair(logits, boxes, torch.tensor(target_index)[None, None], targets)


def test_focal_loss_at_even_odds():
    """p = 1/2: alpha (1 - p)^2 ln 2 for the present class, (1 - alpha) p^2 ln 2 for the absent one."""
    present = sigmoid_focal_loss(torch.zeros(1), torch.ones(1)).item()
    absent = sigmoid_focal_loss(torch.zeros(1), torch.zeros(1)).item()
    assert present == pytest.approx(0.25 * 0.25 * math.log(2))
    assert absent == pytest.approx(0.75 * 0.25 * math.log(2))


def test_quality_focal_loss_is_zero_at_the_quality_but_for_its_entropy():
    """p = 1/2: |q - p|^2 (-q ln p - (1 - q) ln(1 - p)) = |q - 1/2|^2 ln 2, so nothing at q = 1/2."""
    quality, positive = torch.tensor([1.0, 0.5, 0.0, 0.0]), torch.tensor([True, True, True, False])
    loss = quality_focal_loss(torch.zeros(4), quality, positive)
    assert loss.tolist() == pytest.approx([0.25 * math.log(2), 0.0, 0.25 * math.log(2), 0.25 * math.log(2)])
    balanced = quality_focal_loss(torch.zeros(4), quality, positive, alpha=0.25)
    assert (balanced / 0.25 / math.log(2)).tolist() == pytest.approx([0.25, 0.0, 0.25, 0.75])


def test_distribution_focal_loss_is_the_cross_entropy_of_both_neighbours():
    """Of 0, 1, 2 with probabilities 1/2, 1/4, 1/4: 0.25 is three parts 0 and one part 1; 1 is 1 alone."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(2, 3)
    loss = distribution_focal_loss(logits, torch.tensor([0.25, 1.0]))
    assert loss.tolist() == pytest.approx([0.75 * math.log(2) + 0.25 * math.log(4), math.log(4)])


def test_focal_loss_counts_background_for_all_classes():
    """Two queries, two classes: one entry is present, three are absent."""
    matched = make_matched([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]], [0, -1])
    expected = (0.25 + 3 * 0.75) * 0.25 * math.log(2)
    assert FocalLoss()(matched).tolist() == pytest.approx([expected])


def test_l1_loss_sums_the_coordinates_of_positives_only():
    matched = make_matched([[0.6, 0.5, 0.3, 0.4], [0.1, 0.1, 0.1, 0.1]], [0, -1])
    assert L1Loss()(matched).tolist() == pytest.approx([0.2])


def test_giou_loss_of_disjoint_and_of_equal_boxes():
    """(0.1, 0.5, 0.2, 0.4) beside the target, a gap of 0.1: IoU 0, union .24, enclosing 0.7 x 0.4 = .28."""
    disjoint = make_matched([[0.1, 0.5, 0.2, 0.4]], [0])
    assert GIoULoss()(disjoint).tolist() == pytest.approx([1 + 0.04 / 0.28], abs=1e-4)
    assert GIoULoss()(make_matched([[0.5, 0.5, 0.4, 0.4]], [0])).tolist() == pytest.approx([0.0], abs=1e-4)


def small_matched() -> MatchedPredictions:
    """Objects and predictions of 4 x 4 pixels in an image of 800 x 800, 1 pixel apart: 12 of 20 pixels in common."""
    side = 4 / 800
    targets = Targets.from_lists([torch.tensor([1])], [torch.tensor([[0.5, 0.5, side, side]])])
    boxes = torch.tensor([[0.5 + 1 / 800, 0.5, side, side], [0.5, 0.5, side, side]])[None, None]
    return MatchedPredictions.pair(torch.zeros(1, 1, 2, 2), boxes, torch.tensor([0, 0])[None, None], targets)


def test_the_exact_giou_loss_of_small_boxes_is_as_of_large_ones():
    """1 - 12 / 20, and 0 for the equal box; DINO's has 0.64 pixels more in the denominators. Tolerance: corners at 0.5
    are off by 6e-8 in float32, sides of 0.005 by 1e-5 of themselves."""
    assert ExactGIoULoss()(small_matched()).tolist() == pytest.approx([0.4], abs=1e-4)
    assert GIoULoss()(small_matched()).tolist() == pytest.approx([1 - 12 / 20.64 + 1 - 16 / 16.64], abs=1e-4)


def test_quality_focal_loss_knows_the_exact_iou_of_small_boxes():
    """p = 1/2: |s - 1/2|^2 ln 2 of IoUs 0.6 and 1 for their class, ln 2 / 4 for the other one."""
    expected = (0.1**2 + 0.5**2 + 2 * 0.25) * math.log(2)
    assert QualityFocalLoss()(small_matched()).tolist() == pytest.approx([expected], abs=1e-4)


def test_background_boxes_get_no_gradient():
    matched = make_matched([[0.6, 0.5, 0.3, 0.4], [0.1, 0.1, 0.1, 0.1]], [0, -1])
    (L1Loss()(matched) + GIoULoss()(matched) + ExactGIoULoss()(matched)).sum().backward()
    gradient = matched.boxes.grad if matched.boxes.is_leaf else None
    assert gradient is not None
    assert gradient[0, 0, 0].abs().max() > 0
    assert gradient[0, 0, 1].abs().max() == 0


def test_softmax_loss_weighs_background_less_and_divides_by_the_weights():
    """Even logits over two classes and "no object": ln 3 each; a positive of weight 1, a background of weight 0.1."""
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]]
    matched = make_matched(boxes, [0, -1], torch.zeros(1, 1, 2, 3))
    loss = SoftmaxLoss(background_weight=0.1)
    assert loss(matched).tolist() == pytest.approx([1.1 * math.log(3)])
    assert loss.normaliser(matched).tolist() == pytest.approx([1.1])


def test_softmax_loss_wants_class_1_where_it_is_and_no_object_elsewhere():
    logits = torch.tensor([[[[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]]])
    matched = make_matched([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]], [0, -1], logits)
    assert SoftmaxLoss()(matched).item() < 1e-3
