"""Adaptive training sample selection against loops that follow its algorithm word by word."""

import math
import statistics

import pytest
import torch

from dinox.matching import assign_atss


def grid(stride: int, rows: int, columns: int) -> torch.Tensor:
    """Squares of 8 strides around multiples of the stride, row by row."""
    half = 4 * stride
    centers = [(x * stride, y * stride) for y in range(rows) for x in range(columns)]
    return torch.tensor([[x - half, y - half, x + half, y + half] for x, y in centers]).float()


def iou_of(a: list, b: list) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def slow_atss(levels: list, objects: list, top_k: int) -> list:
    anchors = [anchor for level in levels for anchor in level.tolist()]
    center = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
    claims = {}  # anchor -> (IoU, object)
    for index, box in enumerate(objects):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, start = [], 0
        for level in levels:
            own = range(start, start + len(level))
            candidates += sorted(own, key=lambda i: math.dist(center[i], middle))[:top_k]
            start += len(level)
        ious = [iou_of(anchors[i], box) for i in candidates]
        threshold = statistics.mean(ious) + statistics.stdev(ious)
        for i, iou in zip(candidates, ious, strict=True):
            x, y = center[i]
            depth = min(x - box[0], y - box[1], box[2] - x, box[3] - y)
            if iou >= threshold and depth > 0.01 and iou > claims.get(i, (0, None))[0]:
                claims[i] = (iou, index)
    return [claims.get(i, (0, -1))[1] for i in range(len(anchors))]


@pytest.mark.parametrize("top_k", [1, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_algorithm_of_the_paper(top_k, seed):
    """Twelve crowded objects, some partly outside of the image; the coarsest level has fewer than 9 cells."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(12, 2, generator=generator) * 110 - 10
    objects = torch.cat([corners, corners + 8 + 70 * torch.rand(12, 2, generator=generator)], dim=1)
    levels = [grid(8, 12, 14), grid(16, 6, 7), grid(64, 2, 2)]
    assigned = assign_atss(torch.cat(levels), [len(level) for level in levels], objects, top_k=top_k)
    assert assigned.tolist() == slow_atss(levels, objects.tolist(), top_k)
    assert (assigned >= 0).any()


def test_an_anchor_that_two_objects_claim_goes_to_the_higher_iou():
    """One level, four candidates. Objects 0 and 1 share their centre; the anchor there fits object 1 exactly."""
    anchors = grid(8, 5, 5)
    objects = torch.tensor([[12.0, 12, 20, 20], [-16, -16, 48, 48]])
    assigned = assign_atss(anchors, [25], objects, top_k=4)
    assert assigned[2 * 5 + 2] == 1
    assert assign_atss(anchors, [25], objects[:1], top_k=4)[2 * 5 + 2] == 0


def test_a_centre_on_the_border_of_the_object_is_not_inside():
    """The nearest anchor is centred at (16, 16), 0.01 px (less than 1e-6 more or less) inside the second object."""
    anchors = grid(8, 5, 5)
    for border, inside in ((16.0, False), (15.98, True)):
        assigned = assign_atss(anchors, [25], torch.tensor([[border, 0.0, border + 6, 30.0]]), top_k=1)
        assert bool((assigned == 0).any()) is inside


def test_an_object_outside_of_all_anchors_and_no_object_leave_background():
    anchors = grid(8, 5, 5)
    assert assign_atss(anchors, [25], torch.tensor([[500.0, 500, 520, 520]])).eq(-1).all()
    assert assign_atss(anchors, [25], torch.zeros(0, 4)).eq(-1).all()
    assert assign_atss(torch.zeros(0, 4), [0], torch.tensor([[0.0, 0, 9, 9]])).shape == (0,)
