"""Label assignment by location and size (FCOS, Tian et al. 2019, section 3.2, with centre sampling).

Legend: P places (points) of one image, M objects.
"""

from functools import reduce

import torch
from torch import Tensor

from dinox.structures import BACKGROUND, side_distances, xyxy_to_cxcywh
from dinox.structures.boxes import box_area


@torch.no_grad()
def assign_fcos(
    points: Tensor, strides: Tensor, ranges: Tensor, objects: Tensor, *, center_radius: float = 1.5
) -> Tensor:
    """The object that each point of one image learns.

    A point wants an object if it lies inside of it and inside the square of ``center_radius`` strides to every side of
    its centre, and if the farthest side of the object is in the range of the point's level. Of several objects it
    learns the one of the smallest area.

    Args:
        points: (P, 2) absolute x, y.
        strides: (P,) of each point's level, in pixels.
        ranges: (P, 2) least and greatest distance of the farthest side, in pixels, both included.
        objects: (M, 4) absolute xyxy.

    Returns:
        (P,) int64: index of the object, -1 = background.
    """
    if len(objects) == 0:
        return torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
    distances = side_distances(points[:, None], objects[None].expand(len(points), -1, 4)).unbind(-1)  # 4 x (P, M)
    nearest, farthest = (reduce(extremum, distances) for extremum in (torch.minimum, torch.maximum))
    in_range = (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
    x_off_center, y_off_center = (points[:, None] - xyxy_to_cxcywh(objects)[:, :2]).abs().unbind(-1)  # (P, M) each
    in_center = (nearest > 0) & (torch.maximum(x_off_center, y_off_center) < center_radius * strides[:, None])
    area = torch.where(in_range & in_center, box_area(objects), torch.inf)  # (P, M)
    smallest, index = area.min(1)
    return torch.where(smallest.isfinite(), index, BACKGROUND)
