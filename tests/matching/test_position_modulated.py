"""Position-modulated costs against values worked out by hand, and against the released table, entry by entry."""

import math

import pytest
import torch

from dinox.matching import (
    FocalCost,
    GIoUCost,
    HungarianMatcher,
    L1Cost,
    PositionModulatedCost,
    ReleasedPositionModulatedCost,
    positional_scores,
)
from dinox.structures import Targets, cxcywh_to_xyxy, generalized_box_iou

LAYERS, IMAGES, QUERIES, CLASSES = 2, 2, 6, 12


def make_predictions(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES, generator=generator)
    return logits, torch.rand(LAYERS, IMAGES, QUERIES, 4, generator=generator) * 0.4 + 0.1


def make_targets(labels: list[list[int]], seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    boxes = [torch.rand(len(each), 4, generator=generator) * 0.4 + 0.1 for each in labels]
    return Targets.from_lists([torch.tensor(each, dtype=torch.long) for each in labels], boxes)


def cost_at(p: float) -> float:
    return -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)


@pytest.mark.parametrize(("exponent", "factor"), [(0, 1.0), (0.25, 0.5**0.5), (0.5, 0.5), (1, 0.25), (2, 0.0625)])
def test_every_function_of_table_9(exponent, factor):
    """Two squares of side 0.2 in a row, with a gap of 0.4: IoU 0, union 0.08, enclosing 0.16, GIoU -1/2, s' = 1/4."""
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.2, 0.5, 0.2, 0.2]])])
    boxes = torch.tensor([[[[0.8, 0.5, 0.2, 0.2]]]])
    assert positional_scores(boxes, targets.boxes).item() == pytest.approx(0.25, abs=1e-5)
    cost = PositionModulatedCost(exponent=exponent, weight=3.0)(torch.zeros(1, 1, 1, 1), boxes, targets)
    assert cost.item() == pytest.approx(3 * cost_at(0.5 * factor), rel=1e-4)  # 1e-6 beside areas of 0.1


def test_exponent_0_is_the_focal_cost():
    (logits, boxes), targets = make_predictions(), make_targets([[0, 1], [2]])
    expected = FocalCost()(logits, boxes, targets)
    torch.testing.assert_close(PositionModulatedCost(exponent=0)(logits, boxes, targets), expected)


def test_a_good_box_beats_a_good_score():
    """Score .7 with a box aside (s' = .4, so .7 x .63 = .44) loses to .5 in place, which it beats unmodulated."""
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]]]])
    logits = torch.tensor([0.5, 0.7]).logit().view(1, 1, 2, 1)
    matched = [
        HungarianMatcher(class_cost=cost, bbox_cost=None, giou_cost=None)([(logits, boxes)], targets)[0].flatten()
        for cost in (PositionModulatedCost(), FocalCost())
    ]
    assert [each.tolist() for each in matched] == [[0, -1], [-1, 0]]


def released_cost(logits, boxes, targets, exponent: float = 0.5):
    """The table of the release, for one prediction set, filled object after object over the whole batch."""
    table = torch.zeros(logits.shape)  # (B, N, K)
    objects = [(b, m) for b, count in enumerate(targets.counts) for m in range(count)]
    for image in range(len(logits)):
        for query in range(logits.shape[1]):
            box = cxcywh_to_xyxy(boxes[image, query])
            for b, m in objects:
                giou = generalized_box_iou(box, cxcywh_to_xyxy(targets.boxes[b, m]))
                table[image, query, targets.labels[b, m]] = (giou + 1) / 2
        table[image] *= max(1.0, 1 / (table[image].max().item() + 1e-8))
    probability = logits.sigmoid() * table**exponent
    positive = -0.25 * (1 - probability) ** 2 * (probability + 1e-8).log()
    cost = 2 * (positive + 0.75 * probability**2 * (1 - probability + 1e-8).log())
    return [[cost[b, :, targets.labels[b, m]] for m in range(count)] for b, count in enumerate(targets.counts)]


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 1, 2], [3, 4]],
        [[0, 1, 0], [2, 1]],  # twice in an image, and in both
        [[5, 5, 5], [5, 5]],
        [[], [0, 0]],
        [[1, 1], []],
    ],
)
def test_the_released_cost_is_that_of_its_table(labels):
    (logits, boxes), targets = make_predictions(), make_targets(labels)
    found = ReleasedPositionModulatedCost()(logits, boxes, targets)
    for layer in range(LAYERS):
        expected = released_cost(logits[layer], boxes[layer], targets)
        for b, columns in enumerate(expected):
            for m, column in enumerate(columns):
                torch.testing.assert_close(found[layer, b, :, m], column)


def test_with_distinct_labels_the_released_cost_is_the_papers_normalised_by_image():
    (_, boxes), targets = make_predictions(), make_targets([[0, 1, 2], [3, 4]])
    everything = targets.boxes[targets.valid]  # of both images
    largest = positional_scores(boxes, everything).amax(dim=(2, 3), keepdim=True)
    released = ReleasedPositionModulatedCost()
    scores = released.position(boxes, targets)
    expected = positional_scores(boxes, targets.boxes) / largest
    valid = targets.valid[None, :, None].expand_as(scores)
    torch.testing.assert_close(scores[valid], expected[valid])
    assert (largest < 1).all()  # so that there was something to normalise


@pytest.mark.parametrize("cost", [PositionModulatedCost(), ReleasedPositionModulatedCost()])
def test_batches_without_objects_have_finite_costs(cost):
    (logits, boxes), targets = make_predictions(), make_targets([[], []])
    assert torch.isfinite(cost(logits, boxes, targets)).all()
    matcher = HungarianMatcher(class_cost=cost, bbox_cost=L1Cost(), giou_cost=GIoUCost())
    assert (matcher([(logits, boxes)], targets)[0] == -1).all()


@pytest.mark.parametrize("cost", [PositionModulatedCost(), ReleasedPositionModulatedCost()])
def test_perfect_boxes_points_for_boxes_and_sure_scores_are_finite(cost):
    targets = make_targets([[0, 1], [2, 2]])
    boxes = targets.boxes.repeat(1, 3, 1)[None].repeat(LAYERS, 1, 1, 1)
    boxes[:, :, -1, 2:] = 0
    logits = torch.full((LAYERS, IMAGES, QUERIES, CLASSES), 80.0)
    logits[:, :, 0] = -80.0
    assert torch.isfinite(cost(logits, boxes, targets)).all()


def test_negative_exponents_are_errors():
    with pytest.raises(ValueError, match="exponent must be at least 0, got -1"):
        PositionModulatedCost(exponent=-1.0)
