"""Assignment by IoU thresholds against a loop over all pairs."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from dinox.matching import IGNORED, assign_max_iou
from tests.matching.test_atss import grid, iou_of


def slow_max_iou(anchors: list, objects: list, positive: float, negative: float, least: float | None) -> list:
    iou = [[iou_of(anchor, box) for box in objects] for anchor in anchors]
    assigned = []
    for row in iou:
        best = max(row)
        assigned.append(row.index(best) if best >= positive else -1 if best < negative else IGNORED)
    for index in range(len(objects)):
        best = max(row[index] for row in iou)
        if least is not None and best > 0 and best >= least:
            assigned = [index if row[index] == best else old for row, old in zip(iou, assigned, strict=True)]
    return assigned


def random_objects(count: int, seed: int) -> torch.Tensor:
    """Whole pixels, so that every number here is exact in either precision but for the last division."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 90, (count, 2), generator=generator)
    return torch.cat([corners, corners + torch.randint(4, 80, (count, 2), generator=generator)], dim=1).float()


@pytest.mark.parametrize("least", [None, 0.0, 0.3])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_it_is_a_loop_over_all_pairs(least, count):
    """40 objects are looked at in three portions. float64, so that ties of the loop are ties of the tensors."""
    anchors, objects = torch.cat([grid(8, 10, 10), grid(16, 5, 5)]).double(), random_objects(count, seed=count).double()
    assigned = assign_max_iou(anchors, objects, positive_iou=0.5, negative_iou=0.4, least_iou=least)
    assert assigned.tolist() == slow_max_iou(anchors.tolist(), objects.tolist(), 0.5, 0.4, least)


def test_it_is_detectron2s_matcher_without_low_quality_matches():
    anchors, objects = grid(8, 10, 10), random_objects(20, seed=1)
    index, label = Matcher([0.4, 0.5], [0, -1, 1])(pairwise_iou(Boxes(objects), Boxes(anchors)))
    expected = torch.where(label == 1, index, torch.where(label == 0, -1, IGNORED))
    assigned = assign_max_iou(anchors, objects, positive_iou=0.5, negative_iou=0.4, least_iou=None)
    assert assigned.equal(expected) and {IGNORED, -1} < set(assigned.tolist())


def test_an_object_takes_its_best_anchor_even_from_an_object_that_fits_it_better():
    """One anchor; object 0 is the anchor itself, object 1 has IoU 1/4 with it and no better anchor."""
    anchors, objects = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[0.0, 0, 8, 8], [0, 0, 4, 4]])
    thresholds = {"positive_iou": 0.5, "negative_iou": 0.4}
    assert assign_max_iou(anchors, objects, **thresholds, least_iou=0.0).tolist() == [1]
    assert assign_max_iou(anchors, objects, **thresholds, least_iou=0.3).tolist() == [0]


def test_an_object_that_no_anchor_overlaps_gets_none():
    """Its highest IoU, 0, is that of all anchors."""
    objects = torch.tensor([[900.0, 900, 910, 910], [3, 3, 3, 3]])
    assigned = assign_max_iou(grid(8, 4, 4), objects, positive_iou=0.1, negative_iou=0.1, least_iou=0.0)
    assert assigned.eq(-1).all()


def test_without_objects_all_is_background_and_without_anchors_nothing_is_assigned():
    nothing = assign_max_iou(grid(8, 4, 4), torch.zeros(0, 4), positive_iou=0.5, negative_iou=0.4, least_iou=0.0)
    assert nothing.eq(-1).all()
    empty = assign_max_iou(torch.zeros(0, 4), torch.ones(2, 4), positive_iou=0.5, negative_iou=0.4, least_iou=0.0)
    assert empty.shape == (0,)
