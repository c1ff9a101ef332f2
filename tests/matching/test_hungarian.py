import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dinox.matching import ExactGIoUCost, FocalCost, GIoUCost, HungarianMatcher, L1Cost
from dinox.structures import Targets, cxcywh_to_xyxy, generalized_box_iou

LAYERS, IMAGES, QUERIES, CLASSES = 3, 2, 8, 5


@pytest.fixture
def matcher():
    return HungarianMatcher(class_cost=FocalCost(), bbox_cost=L1Cost(), giou_cost=GIoUCost())


def make_predictions(seed: int = 0, queries: int = QUERIES, layers: int = LAYERS):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, IMAGES, queries, CLASSES, generator=generator)
    return logits, torch.rand(layers, IMAGES, queries, 4, generator=generator) * 0.4 + 0.1


def make_targets(*counts: int, seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(CLASSES, (n,), generator=generator) for n in counts]
    return Targets.from_lists(labels, [torch.rand(n, 4, generator=generator) * 0.4 + 0.1 for n in counts])


def slow_cost(logits, boxes, labels, target_boxes) -> torch.Tensor:
    """One image of one layer, pair by pair, straight from the formulas: weights 2, 5, 2, alpha .25, gamma 2."""
    cost = torch.zeros(len(logits), len(labels))
    for q, (query_logits, box) in enumerate(zip(logits, boxes, strict=True)):
        for m, (label, wanted) in enumerate(zip(labels, target_boxes, strict=True)):
            p = query_logits[label].sigmoid()
            positive = -0.25 * (1 - p) ** 2 * (p + 1e-8).log()
            negative = -0.75 * p**2 * (1 - p + 1e-8).log()
            giou = generalized_box_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(wanted))
            cost[q, m] = 2 * (positive - negative) + 5 * (box - wanted).abs().sum() - 2 * giou
    return cost


def test_all_layers_and_images_at_once_match_as_one_by_one(matcher):
    (logits, boxes), targets = make_predictions(), make_targets(3, 5)
    (found,) = matcher([(logits, boxes)], targets)
    for layer in range(LAYERS):
        for image, count in enumerate(targets.counts):
            cost = slow_cost(
                logits[layer, image], boxes[layer, image], targets.labels[image, :count], targets.boxes[image, :count]
            )
            queries, objects = linear_sum_assignment(cost.numpy())
            expected = torch.full((QUERIES,), -1)
            expected[queries] = torch.from_numpy(objects)
            assert torch.equal(found[layer, image], expected)


def test_the_exact_giou_cost_knows_small_objects_as_well_as_large_ones():
    """4 x 4 pixels of an image of 800 x 800, 1 pixel apart: minus 2 x 12 / 20, and -2 for the equal box; else with
    1e-6, 0.64 pixels, in the denominator. Float32 corners at 0.5: 1e-4."""
    side = 4 / 800
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.5, 0.5, side, side]])])
    boxes = torch.tensor([[0.5 + 1 / 800, 0.5, side, side], [0.5, 0.5, side, side]])[None, None]
    logits = torch.zeros(1, 1, 2, CLASSES)
    assert ExactGIoUCost()(logits, boxes, targets).flatten().tolist() == pytest.approx([-1.2, -2.0], abs=1e-4)
    expected = [-2 * 12 / 20.64, -2 * 16 / 16.64]
    assert GIoUCost()(logits, boxes, targets).flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_groups_of_different_sizes_are_matched_in_one_call(matcher):
    first, second, targets = make_predictions(0), make_predictions(1, queries=6, layers=1), make_targets(2, 4)
    together = matcher([first, second], targets)
    assert torch.equal(together[0], matcher([first], targets)[0])
    assert torch.equal(together[1], matcher([second], targets)[0])


def test_images_without_objects_are_all_background(matcher):
    found = matcher([make_predictions()], make_targets(0, 2))[0]
    assert (found[:, 0] == -1).all()
    assert ((found[:, 1] >= 0).sum(-1) == 2).all()
    assert (matcher([make_predictions()], make_targets(0, 0))[0] == -1).all()


def test_more_objects_than_queries_match_every_query(matcher):
    found = matcher([make_predictions()], make_targets(20, 1))[0]
    assert (found[:, 0] >= 0).all()
    assert all(len(set(layer.tolist())) == QUERIES for layer in found[:, 0])


@pytest.mark.parametrize("repeats", [2, 3, 6])
def test_repeated_objects_are_matched_as_if_they_stood_in_the_list_so_often(matcher, repeats):
    """Also where that is more than there are queries (6 x 3 and 3 x 5, but 8 queries)."""
    (logits, boxes), targets = make_predictions(), make_targets(3, 5)
    (found,) = matcher([(logits, boxes)], targets, repeats=[repeats])
    for layer in range(LAYERS):
        for image, count in enumerate(targets.counts):
            labels = targets.labels[image, :count].repeat(repeats)
            target_boxes = targets.boxes[image, :count].repeat(repeats, 1)
            queries, repeated = linear_sum_assignment(
                slow_cost(logits[layer, image], boxes[layer, image], labels, target_boxes).numpy()
            )
            expected = torch.full((QUERIES,), -1)
            expected[queries] = torch.from_numpy(repeated) % count
            assert torch.equal(found[layer, image], expected)


def test_every_group_has_its_own_number_of_repeats(matcher):
    found = matcher([make_predictions(), make_predictions()], make_targets(2, 0), repeats=[1, 3])
    assert [(index >= 0).sum(-1).tolist() for index in found] == [[[2, 0]] * LAYERS, [[6, 0]] * LAYERS]


@pytest.mark.parametrize(("part", "name"), [(0, "logits"), (1, "boxes")])
def test_a_cost_that_is_not_finite_is_named(matcher, part, name):
    predictions = make_predictions()
    predictions[part][1, 1, 3] = float("nan")
    with pytest.raises(
        ValueError, match=rf"{name} of prediction set 0, layer 1, image 1 .* NaN or infinity.*learning rate"
    ):
        matcher([predictions], make_targets(2, 2))


def test_costs_may_lie_in_memory_as_they_like(matcher):
    """Other people's lie query by query, not object by object."""
    by_query = HungarianMatcher(
        class_cost=lambda *inputs: matcher.costs["class_cost"](*inputs).contiguous(),
        bbox_cost=L1Cost(),
        giou_cost=lambda *inputs: matcher.costs["giou_cost"](*inputs).contiguous(),
    )
    predictions, targets = make_predictions(queries=60), make_targets(20, 3)
    assert torch.equal(by_query([predictions], targets)[0], matcher([predictions], targets)[0])


def test_a_matcher_without_costs_is_an_error():
    with pytest.raises(ValueError, match="at least one of class_cost, bbox_cost, giou_cost"):
        HungarianMatcher(class_cost=None, bbox_cost=None, giou_cost=None)
