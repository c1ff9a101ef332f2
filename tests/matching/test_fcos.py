"""Assignment by location and size against a loop over points."""

import math

import pytest
import torch

from dinox.matching import assign_fcos

RANGES = {8: (-1, 64), 16: (64, 128), 32: (128, math.inf)}


def make_points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points, strides and ranges of an image of 256 x 320 pixels."""
    points = [
        ((x + 0.5) * s, (y + 0.5) * s, s, *RANGES[s]) for s in RANGES for y in range(256 // s) for x in range(320 // s)
    ]
    x, y, strides, low, high = torch.tensor(points).unbind(1)
    return torch.stack([x, y], dim=1), strides, torch.stack([low, high], dim=1)


def slow_fcos(points: list, strides: list, ranges: list, objects: list, radius: float) -> list:
    assigned = []
    for (x, y), stride, (low, high) in zip(points, strides, ranges, strict=True):
        smallest, chosen = math.inf, -1
        for index, (x1, y1, x2, y2) in enumerate(objects):
            left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
            inside = min(left, top, right, bottom) > 0 and low <= max(left, top, right, bottom) <= high
            in_center = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < radius * stride
            if inside and in_center and (x2 - x1) * (y2 - y1) < smallest:
                smallest, chosen = (x2 - x1) * (y2 - y1), index
        assigned.append(chosen)
    return assigned


@pytest.mark.parametrize("radius", [0.5, 1.5])
def test_it_is_a_loop_over_points(radius):
    """Whole pixels: exact in either precision, borders of centres and ranges included."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(-20, 250, (60, 2), generator=generator)
    objects = torch.cat([corners, corners + torch.randint(2, 260, (60, 2), generator=generator)], dim=1).float()
    points, strides, ranges = make_points()
    assigned = assign_fcos(points, strides, ranges, objects, center_radius=radius)
    assert assigned.tolist() == slow_fcos(points.tolist(), strides.tolist(), ranges.tolist(), objects.tolist(), radius)
    assert {8.0, 16.0, 32.0} == set(strides[assigned >= 0].tolist())


def test_of_two_objects_the_smaller_one_is_learnt_where_both_are_wanted():
    points, strides, ranges = make_points()
    objects = torch.tensor([[40.0, 40, 100, 100], [60, 60, 80, 80]])
    assigned = assign_fcos(points, strides, ranges, objects)
    at_center = ((points - 70).abs() < 8).all(1) & (strides == 8)
    assert assigned[at_center].eq(1).all() and at_center.any() and (assigned == 0).any()


def test_without_objects_all_points_are_background():
    assert assign_fcos(*make_points(), torch.zeros(0, 4)).eq(-1).all()
