"""Position-supervised losses against values worked out by hand.

One image, one object of class 1 with box (0.5, 0.5, 0.4, 0.4). Boxes of the same centre and height and a width of
0.4 * s lie inside it and have IoU s, but for the 1e-6 beside the union of 0.16: hence tolerances of 1e-5 on targets.
"""

import math

import pytest
import torch

from dinox.losses import (
    FocalLoss,
    LossByGroup,
    PositionSupervisedLoss,
    QualityFocalLoss,
    SoftmaxLoss,
    largest_iou,
    position_targets,
    rescale_targets,
)
from dinox.structures import MatchedPredictions, Targets

OBJECT = [0.5, 0.5, 0.4, 0.4]
ELSEWHERE = [0.1, 0.1, 0.1, 0.1]


def box_of_iou(iou: float) -> list[float]:
    return [0.5, 0.5, 0.4 * iou, 0.4]


def make_matched(boxes: list, target_index: list, logits=None, *, num_objects: int = 1, **options):
    """One prediction set and one image; logits of two classes, even by default."""
    targets = Targets.from_lists(
        [torch.ones(num_objects, dtype=torch.long)], [torch.tensor([OBJECT]).repeat(num_objects, 1)]
    )
    boxes = torch.tensor(boxes).view(1, 1, -1, 4).requires_grad_()
    logits = torch.zeros(1, 1, boxes.shape[2], 2) if logits is None else torch.tensor(logits)[None, None]
    index = torch.tensor(target_index)[None, None]
    return MatchedPredictions.pair(logits.requires_grad_(), boxes, index, targets, **options)


def cross_entropy(p: float, target: float) -> float:
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


S, P = 0.64, 0.25  # roots and powers of them are short


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"iou_exponent": 0}, 1.0),
        ({"iou_exponent": 0.5}, 0.8),
        ({"iou_exponent": 1}, 0.64),
        ({}, 0.4096),
        ({"iou_exponent": 3}, 0.262144),
        ({"iou_exponent": 1, "probability_exponent": 0.25}, 0.64 * 0.70710678),
        ({"iou_exponent": 1, "probability_exponent": 1}, 0.16),
        ({"iou_exponent": 2, "probability_exponent": 1}, 0.1024),
        ({"iou_exponent": 1, "curve": "exponential"}, (math.exp(0.64) - 1) / (math.e - 1)),
        ({"iou_exponent": 1, "curve": "sine"}, math.sin(0.32 * math.pi)),
    ],
)
def test_every_row_of_table_7(options, expected):
    target = position_targets(torch.tensor([S]), torch.tensor([P]), **options)
    assert target.item() == pytest.approx(expected, rel=1e-6)
    zero, one = torch.zeros(1), torch.ones(1)
    assert position_targets(one, one, **options).item() == pytest.approx(1.0, rel=1e-6)
    if options.get("iou_exponent") != 0:
        assert position_targets(zero, one, **options).item() == 0.0


def test_rescaling_is_per_image_and_never_down():
    """Images with largest targets 0.25, 0.5 and 0: to 0.5, to 0.4 (left alone), and nothing to scale."""
    targets = torch.tensor([[[0.25, 0.1, 0.0], [0.5, 0.2, 0.0], [0.0, 0.0, 0.0]]])
    rescaled = rescale_targets(targets, torch.tensor([[0.5, 0.4, 0.9]]))
    expected = torch.tensor([[[0.5, 0.2, 0.0], [0.5, 0.2, 0.0], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(rescaled, expected, atol=1e-6, rtol=0)  # the 1e-8 beside 0.25


def test_the_largest_iou_is_over_all_queries_and_the_objects_of_their_own_image():
    """Image 0: query 1 has IoU 0.5 with the object; image 1 has no object, and image 0's is not taken for one."""
    targets = Targets.from_lists(
        [torch.tensor([1]), torch.zeros(0).long()], [torch.tensor([OBJECT]), torch.zeros(0, 4)]
    )
    boxes = torch.tensor([[ELSEWHERE, box_of_iou(0.5)], [OBJECT, OBJECT]])[None]
    assert largest_iou(boxes, targets).flatten().tolist() == pytest.approx([0.5, 0.0], abs=1e-5)


@pytest.mark.parametrize(("rescale", "highest"), [(None, 0.25), ("largest_iou", 0.8), ("one", 1.0)])
def test_both_strategies_and_none(rescale, highest):
    """Matched with IoU 0.5, so s^2 = 0.25; another query of the image has IoU 0.8 with the object."""
    matched = make_matched([box_of_iou(0.5), box_of_iou(0.8)], [0, -1])
    loss = PositionSupervisedLoss(rescale=rescale)
    assert loss.targets(matched).flatten().tolist() == pytest.approx([highest, 0.0], abs=1e-5)
    positive = 0.25 * (highest - 0.5) ** 2 * cross_entropy(0.5, highest)
    negatives = 3 * 0.75 * 0.25 * math.log(2)  # the other class of the matched query, and both of the other one
    assert loss(matched).tolist() == pytest.approx([positive + negatives], rel=1e-5)


def test_within_an_image_targets_keep_their_ratio():
    """IoU 0.5 and 0.8, both matched: s^2 is .25 and .64, the larger becomes .8 or 1."""
    matched = make_matched([box_of_iou(0.5), box_of_iou(0.8)], [0, 1], num_objects=2)
    first = PositionSupervisedLoss().targets(matched).flatten().tolist()
    assert first == pytest.approx([0.25 * 0.8 / 0.64, 0.8], abs=1e-5)
    second = PositionSupervisedLoss(rescale="one").targets(matched).flatten().tolist()
    assert second == pytest.approx([0.25 / 0.64, 1.0], abs=1e-5)


def test_prediction_sets_and_images_are_rescaled_apart():
    """Two layers and two images, one query each, IoU 0.2, 0.4, 0.6, 0.8: all become 1."""
    targets = Targets.from_lists([torch.tensor([1])] * 2, [torch.tensor([OBJECT])] * 2)
    boxes = torch.tensor([box_of_iou(s) for s in (0.2, 0.4, 0.6, 0.8)]).view(2, 2, 1, 4)
    matched = MatchedPredictions.pair(torch.zeros(2, 2, 1, 2), boxes, torch.zeros(2, 2, 1).long(), targets)
    assert PositionSupervisedLoss(rescale="one").targets(matched).flatten().tolist() == pytest.approx([1.0] * 4)
    # Alone in its image, the matched box is also the one with the largest IoU.
    first = PositionSupervisedLoss().targets(matched).flatten().tolist()
    assert first == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-5)


def test_target_1_is_the_focal_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, generator=generator).tolist()
    matched = make_matched([box_of_iou(0.3), OBJECT, ELSEWHERE], [0, -1, -1], logits)
    torch.testing.assert_close(PositionSupervisedLoss(iou_exponent=0)(matched), FocalLoss()(matched))


def test_the_gradient_goes_through_p_alone():
    """Not to the boxes, and as if the target were a number: also where the target holds p itself."""
    logits = [[0.0, 1.0], [-1.0, 0.5]]
    for options in ({}, {"rescale": "one"}, {"probability_exponent": 1.0, "iou_exponent": 1.0, "rescale": None}):
        matched = make_matched([box_of_iou(0.5), box_of_iou(0.8)], [0, -1], logits)
        loss = PositionSupervisedLoss(**options)
        target = loss.targets(matched)[0, 0, 0].item()
        (gradient,) = torch.autograd.grad(loss(matched).sum(), matched.logits, retain_graph=True)
        assert torch.autograd.grad(loss(matched).sum(), matched.boxes, allow_unused=True) == (None,)
        x = torch.tensor(1.0, requires_grad=True)
        p = x.sigmoid()
        by_hand = 0.25 * (target - p) ** 2 * (-target * p.log() - (1 - target) * (1 - p).log())
        torch.testing.assert_close(gradient[0, 0, 0, 1], torch.autograd.grad(by_hand, x)[0])


@pytest.mark.parametrize("rescale", [None, "largest_iou", "one"])
@pytest.mark.parametrize("iou_exponent", [0.5, 2.0])
def test_a_matched_box_beside_its_object_has_target_0(rescale, iou_exponent):
    """All IoUs are 0: nothing to scale up, no NaN, and the probability is pushed down."""
    matched = make_matched([ELSEWHERE, ELSEWHERE], [0, -1])
    loss = PositionSupervisedLoss(rescale=rescale, iou_exponent=iou_exponent)
    assert loss.targets(matched).tolist() == [[[0.0, 0.0]]]
    (gradient,) = torch.autograd.grad(loss(matched).sum(), matched.logits)
    assert torch.isfinite(gradient).all() and (gradient > 0).all()


@pytest.mark.parametrize("loss", [PositionSupervisedLoss(), PositionSupervisedLoss(rescale="one"), QualityFocalLoss()])
def test_an_image_without_objects_is_all_background(loss):
    """Four entries at p = 1/2: (1 - alpha) / 4 ln 2 each, without the balance in the quality focal loss."""
    matched = make_matched([OBJECT, ELSEWHERE], [-1, -1], num_objects=0)
    balance = 1.0 if isinstance(loss, QualityFocalLoss) else 0.75
    assert loss(matched).tolist() == pytest.approx([4 * balance * 0.25 * math.log(2)])
    (gradient,) = torch.autograd.grad(loss(matched).sum(), matched.logits)
    assert (gradient > 0).all()


def test_a_group_without_queries_has_loss_0():
    """Denoising of a batch without objects."""
    targets = Targets.from_lists([torch.zeros(0).long()] * 2, [torch.zeros(0, 4)] * 2)
    logits, boxes = torch.zeros(3, 2, 0, 2, requires_grad=True), torch.zeros(3, 2, 0, 4)
    matched = MatchedPredictions.pair(logits, boxes, torch.zeros(3, 2, 0).long(), targets)
    for loss in (PositionSupervisedLoss(), PositionSupervisedLoss(rescale="one"), QualityFocalLoss()):
        assert loss(matched).tolist() == [0.0, 0.0, 0.0] and loss(matched).requires_grad


def test_objects_of_the_same_class_have_targets_of_their_own():
    matched = make_matched([box_of_iou(0.5), box_of_iou(0.9), ELSEWHERE], [1, 0, -1], num_objects=2)
    targets = PositionSupervisedLoss(rescale=None).targets(matched).flatten().tolist()
    assert targets == pytest.approx([0.25, 0.81, 0.0], abs=1e-5)


def test_saturated_logits_are_finite():
    matched = make_matched([box_of_iou(0.5), ELSEWHERE], [0, -1], [[60.0, -60.0], [60.0, -60.0]])
    (gradient,) = torch.autograd.grad(PositionSupervisedLoss()(matched).sum(), matched.logits)
    assert torch.isfinite(gradient).all()


def test_quality_focal_loss_wants_the_iou():
    """IoU 0.5 at p = 1/2 costs nothing; at p = 0.2, 0.3^2 BCE(0.2, 0.5). Three other entries at p = 1/2: ln 2 / 4."""
    others = 3 * 0.25 * math.log(2)
    boxes = [box_of_iou(0.5), ELSEWHERE]
    assert QualityFocalLoss()(make_matched(boxes, [0, -1])).item() == pytest.approx(others, rel=1e-4)
    unsure = make_matched(boxes, [0, -1], [[0.0, math.log(0.25)], [0.0, 0.0]])
    assert QualityFocalLoss()(unsure).item() == pytest.approx(others + 0.09 * cross_entropy(0.2, 0.5), rel=1e-4)
    same = PositionSupervisedLoss(iou_exponent=1, rescale=None, alpha=0.5)
    # But for the 1e-6 beside the union in the second one.
    assert QualityFocalLoss()(unsure).item() == pytest.approx(2 * same(unsure).item(), rel=1e-5)


def test_a_loss_by_group_is_that_of_the_group():
    loss = LossByGroup(otherwise=PositionSupervisedLoss(), denoising=FocalLoss(), other=SoftmaxLoss())
    arguments = ([box_of_iou(0.5), ELSEWHERE], [0, -1])
    matching = make_matched(*arguments)
    denoising, encoder, other = (make_matched(*arguments, group=name) for name in ("denoising", "encoder", "other"))
    assert loss(matching) == loss(encoder) == PositionSupervisedLoss()(matching)
    assert loss(denoising) == FocalLoss()(matching) != loss(matching)
    assert loss.groups == {"denoising", "other"}
    assert loss.normaliser(denoising) is None
    assert torch.equal(loss.normaliser(other), SoftmaxLoss().normaliser(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": "cosine"}, "curve must be one of 'exponential', 'sine' or None, got 'cosine'"),
        ({"rescale": "two"}, "rescale must be one of 'largest_iou', 'one' or None, got 'two'"),
        ({"iou_exponent": -1.0}, "iou_exponent must be at least 0, got -1"),
        ({"probability_exponent": -0.5}, "probability_exponent must be at least 0"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        PositionSupervisedLoss(**options)
