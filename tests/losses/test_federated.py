"""The federated loss against the loss that it wraps, on the classes drawn."""

import dataclasses
import math

import pytest
import torch

from dinox.losses import (
    FederatedLoss,
    FocalLoss,
    PositionSupervisedLoss,
    QualityFocalLoss,
    SoftmaxLoss,
    draw_classes,
)
from dinox.structures import MatchedPredictions, Targets

from ..small_models import DINO, assert_trains_one_step, build_small, loss_keys, make_input

CLASSES = 6


def make_matched(num_layers: int = 2) -> MatchedPredictions:
    """Two images of three queries: one object of class 4 in the first, matched by query 1; none in the second."""
    generator = torch.Generator().manual_seed(0)
    targets = Targets.from_lists(
        [torch.tensor([4]), torch.empty(0, dtype=torch.int64)],
        [torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.empty(0, 4)],
    )
    logits = torch.randn(num_layers, 2, 3, CLASSES, generator=generator).requires_grad_()
    boxes = torch.rand(num_layers, 2, 3, 4, generator=generator)
    index = torch.tensor([[-1, 0, -1], [-1, -1, -1]]).expand(num_layers, -1, -1)
    return MatchedPredictions.pair(logits, boxes, index, targets)


def draws(*classes: int):
    return lambda present, weights, number, generator: torch.tensor(classes)


def test_at_even_odds_only_the_drawn_classes_count():
    """p = 1/2 everywhere: 6 queries x 2 classes, of which one entry is present: (.25 + 11 x .75) x .25 ln 2."""
    matched = make_matched(1)
    matched.logits.data.zero_()
    loss = FederatedLoss(loss=FocalLoss(), image_counts=None, draw=draws(1, 4))
    assert loss(matched).tolist() == pytest.approx([(0.25 + 11 * 0.75) * 0.25 * math.log(2)])


def test_classes_not_drawn_get_no_gradient_at_all():
    matched = make_matched()
    FederatedLoss(loss=FocalLoss(), image_counts=None, draw=draws(1, 4))(matched).sum().backward()
    gradient = matched.logits.grad
    assert (gradient[..., [0, 2, 3, 5]] == 0).all()
    assert (gradient[..., [1, 4]] != 0).all()


def test_gradient_on_drawn_classes_is_that_of_the_wrapped_loss():
    """But for the last bits, which depend on how many numbers torch takes at a time."""
    matched, whole = make_matched(), make_matched()
    FederatedLoss(loss=FocalLoss(), image_counts=None, draw=draws(1, 4))(matched).sum().backward()
    FocalLoss()(whole).sum().backward()
    torch.testing.assert_close(matched.logits.grad[..., [1, 4]], whole.logits.grad[..., [1, 4]], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number", [CLASSES, 50])
def test_with_all_classes_drawn_it_is_the_wrapped_loss(number):
    matched = make_matched()
    loss = FederatedLoss(loss=FocalLoss(), image_counts=[1] * CLASSES, num_classes_drawn=number)
    assert loss(matched).tolist() == FocalLoss()(matched).tolist()


def test_layers_share_the_classes_of_a_call_and_the_next_call_draws_anew():
    """Equal logits in both layers: sums are equal if the classes are."""
    matched = make_matched()
    matched.logits.data[1] = matched.logits.data[0]
    index = matched.labels.clone()
    loss = FederatedLoss(
        loss=FocalLoss(), image_counts=None, num_classes_drawn=2, generator=torch.Generator().manual_seed(0)
    )
    sums = torch.stack([loss(matched) for _ in range(20)])
    assert (sums[:, 0] == sums[:, 1]).all()
    assert len(set(sums[:, 0].tolist())) > 1
    assert (matched.labels == index).all()


def test_all_present_classes_are_drawn_even_if_they_are_more_than_asked_for():
    present = torch.tensor([True, False, True, False, True, False])
    for number, total in ((1, 3), (3, 3), (4, 4), (99, 6)):
        drawn = draw_classes(present, torch.ones(6), number, torch.Generator().manual_seed(number))
        assert {0, 2, 4} <= set(drawn.tolist()) and len(drawn) == len(set(drawn.tolist())) == total
        assert drawn.tolist() == sorted(drawn.tolist())


def test_others_are_drawn_in_proportion_to_their_weights():
    """One of the classes 1, 2, 3 besides class 0, by weights 1, 2, 1 (frequencies 4, 16, 4 to the power of one half):
    the share of class 2 of 2000 draws has a standard deviation of .011; four of them."""
    present, generator = torch.tensor([True, False, False, False]), torch.Generator().manual_seed(0)
    weights = torch.tensor([100.0, 4.0, 16.0, 4.0]) ** 0.5
    others = [draw_classes(present, weights, 2, generator)[1].item() for _ in range(2000)]
    assert others.count(2) / 2000 == pytest.approx(0.5, abs=0.045)
    assert others.count(1) / 2000 == pytest.approx(0.25, abs=0.045)


def test_classes_that_no_image_has_come_last():
    present, weights = torch.zeros(4, dtype=torch.bool), torch.tensor([0.0, 1.0, 1.0, 0.0])
    for seed in range(10):
        assert draw_classes(present, weights, 2, torch.Generator().manual_seed(seed)).tolist() == [1, 2]


def test_a_seed_determines_the_draw():
    matched = make_matched()
    first, second = (
        FederatedLoss(
            loss=FocalLoss(), image_counts=None, num_classes_drawn=3, generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    )
    assert [first(matched).tolist() for _ in range(5)] == [second(matched).tolist() for _ in range(5)]


def test_parts_of_a_batch_draw_the_classes_of_the_batch_if_images_have_seeds():
    """Class 4 is in the first image, class 2 in the second; each of them alone gives both, and the same third one."""
    labels, logits = [torch.tensor([4]), torch.tensor([2])], torch.zeros(1, 2, 1, CLASSES)
    whole = Targets.from_lists(labels, [torch.rand(1, 4)] * 2)
    drawn = []

    def draw(*arguments):
        drawn.append(draw_classes(*arguments).tolist())
        return torch.tensor(drawn[-1])

    loss = FederatedLoss(loss=FocalLoss(), image_counts=None, num_classes_drawn=3, draw=draw)
    for step in range(20):
        seeded = dataclasses.replace(whole, seeds=(2 * step, 2 * step + 1))
        for targets in (seeded, seeded.part(0, 1), seeded.part(1, 1)):
            images = len(targets.counts)
            index = torch.zeros(1, images, 1, dtype=torch.int64)
            loss(MatchedPredictions.pair(logits[:, :images], torch.rand(1, images, 1, 4), index, targets))
        assert drawn[-1] == drawn[-2] == drawn[-3] and {2, 4} < set(drawn[-1])
    assert len(set(map(tuple, drawn))) == 4  # whichever the third one is


def test_without_objects_there_is_a_loss_and_a_gradient():
    logits = torch.zeros(2, 1, 3, CLASSES).requires_grad_()
    index, none = torch.full((2, 1, 3), -1), torch.empty(0, dtype=torch.int64)
    targets = Targets.from_lists([none], [torch.empty(0, 4)])
    matched = MatchedPredictions.pair(logits, torch.rand(2, 1, 3, 4), index, targets)
    loss = FederatedLoss(loss=FocalLoss(), image_counts=None, num_classes_drawn=2)(matched)
    loss.sum().backward()
    assert (loss > 0).all() and (logits.grad != 0).flatten(0, 2).any(0).sum() == 2


def test_classes_of_objects_without_a_query_are_drawn_too():
    """One query, two objects: of classes 4 (matched) and 2."""
    targets = Targets.from_lists([torch.tensor([4, 2])], [torch.rand(2, 4)])
    matched = MatchedPredictions.pair(
        torch.zeros(1, 1, 1, CLASSES), torch.rand(1, 1, 1, 4), torch.tensor([[[0]]]), targets
    )
    drawn = []

    def draw(present, weights, number, generator):
        drawn.append(present.tolist())
        return present.nonzero()[:, 0]

    FederatedLoss(loss=FocalLoss(), image_counts=None, draw=draw)(matched)
    assert drawn == [[False, False, True, False, True, False]]


@pytest.mark.parametrize("loss", [PositionSupervisedLoss(rescale="one"), QualityFocalLoss()])
def test_other_sigmoid_losses_see_the_same_objects(loss):
    """With all classes drawn they are themselves; with some, they are the sum over the entries of these."""
    matched = make_matched()
    everything = FederatedLoss(loss=loss, image_counts=None, num_classes_drawn=CLASSES)(matched)
    assert everything.tolist() == loss(matched).tolist()
    parts = [
        FederatedLoss(loss=loss, image_counts=None, draw=draws(*classes))(matched) for classes in ((0, 4), (4, 5), (4,))
    ]
    both = FederatedLoss(loss=loss, image_counts=None, draw=draws(0, 4, 5))(matched)
    assert (parts[0] + parts[1] - parts[2]).tolist() == pytest.approx(both.tolist(), rel=1e-5)  # float32 sums


def test_a_softmax_is_refused():
    with pytest.raises(ValueError, match="loss: expected one of sigmoid logits, such as FocalLoss, got a SoftmaxLoss"):
        FederatedLoss(loss=SoftmaxLoss(), image_counts=None)


def test_counts_may_be_read_when_they_are_needed():
    calls = []
    loss = FederatedLoss(loss=FocalLoss(), image_counts=lambda: calls.append(1) or [1] * CLASSES)
    assert not calls
    loss(make_matched()), loss(make_matched())
    assert len(calls) == 1


def test_counts_of_other_classes_are_an_error():
    loss = FederatedLoss(loss=FocalLoss(), image_counts=[1, 2, 3])
    with pytest.raises(ValueError, match=r"image_counts: expected one number for each of the 6 classes .* got 3"):
        loss(make_matched())


def test_a_normaliser_of_the_wrapped_loss_stays():
    class Normalised(FocalLoss):
        def normaliser(self, matched):
            return matched.positive.sum((1, 2)).float()

    assert hasattr(FederatedLoss(loss=Normalised(), image_counts=None), "normaliser")
    assert not hasattr(FederatedLoss(loss=FocalLoss(), image_counts=None), "normaliser")


FEDERATED = (
    "model.criterion.class_loss={_target_: dinox.losses.FederatedLoss, loss: {_target_: dinox.losses.FocalLoss}, "
    "image_counts: null, num_classes_drawn: 5}"
)


@pytest.mark.parametrize("num_objects", [3, 0])
def test_a_model_with_the_federated_loss_trains(num_objects):
    model = build_small(DINO, FEDERATED)
    losses = assert_trains_one_step(model, [make_input(64, 64, num_objects), make_input(64, 64, 0)])
    assert losses.keys() == loss_keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_counts": [-1] * CLASSES}, "image_counts: expected numbers of images, 0 or more, got -1 for class 0"),
        ({"image_counts": [1, math.nan]}, "image_counts: expected numbers of images, 0 or more, got nan for class 1"),
        ({"image_counts": ["a"] * CLASSES}, "image_counts: expected numbers of images, 0 or more, got 'a' for class 0"),
        ({"image_counts": [0] * CLASSES}, "image_counts: expected an image for at least one of 6 classes, got none"),
        ({"image_counts": 5}, "image_counts: expected a number for each class, got 5"),
        ({"power": math.nan}, r"power must lie in \[0, 10\], got nan"),
        ({"num_classes_drawn": 2.5}, "num_classes_drawn: expected a whole number of at least 1, got 2.5"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        FederatedLoss(**{"loss": FocalLoss(), "image_counts": None} | settings)


def test_counts_that_are_read_later_are_checked_then():
    loss = FederatedLoss(loss=FocalLoss(), image_counts=lambda: [0] * CLASSES)
    with pytest.raises(ValueError, match="image_counts: expected an image for at least one of 6 classes"):
        loss(make_matched())
