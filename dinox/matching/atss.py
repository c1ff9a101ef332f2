"""Adaptive training sample selection (ATSS, Zhang et al. 2020, algorithm 1).

Legend: P places (anchors) of one image, M objects, C candidates of an object, L levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dinox.structures import BACKGROUND, box_iou, side_distances, xyxy_to_cxcywh

MIN_DISTANCE_INSIDE = 0.01
"""In pixels: an anchor whose centre is no deeper than this inside an object is not positive (mmdetection)."""


@torch.no_grad()
def assign_atss(anchors: Tensor, level_sizes: Sequence[int], objects: Tensor, *, top_k: int = 9) -> Tensor:
    """The object that each anchor of one image learns.

    An object's candidates are on every level the ``top_k`` anchors whose centres are nearest to its own (all, where a
    level has fewer). Positive are those of an IoU of at least mean + standard deviation (the unbiased one, as in the
    authors' code) of its candidates' IoUs whose centres lie inside the object. An anchor that several objects claim
    goes to the one of the highest IoU.

    Args:
        anchors: (P, 4) absolute xyxy, level after level; without those in padding.
        level_sizes: L, how many of the anchors are of each level.
        objects: (M, 4) absolute xyxy.

    Returns:
        (P,) int64: index of the object, -1 = background.
    """
    if len(objects) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    centers, object_centers = (xyxy_to_cxcywh(boxes)[:, :2] for boxes in (anchors, objects))
    candidates = _nearest(centers, level_sizes, object_centers, top_k)  # (C, M)
    iou, _ = box_iou(anchors[candidates], objects)  # (C, M)
    spread = iou.std(0) if len(iou) > 1 else 0  # of a single number there is no unbiased one
    depth = side_distances(centers[candidates], objects.expand(*iou.shape, 4)).amin(-1)  # (C, M)
    positive = (iou >= iou.mean(0) + spread) & (depth > MIN_DISTANCE_INSIDE)
    return _give_to_highest(candidates, iou, positive, num_places=len(anchors))


def _nearest(centers: Tensor, level_sizes: Sequence[int], object_centers: Tensor, top_k: int) -> Tensor:
    """(C, M) indices of the anchors nearest to every object, level after level."""
    candidates, start = [], 0
    for size in level_sizes:
        x, y = (centers[start : start + size, None] - object_centers).unbind(-1)  # (size, M) each
        # Of squares that differ in the last bit, the roots may tie: the release compares roots.
        distance = (x.square() + y.square()).sqrt().t().contiguous()  # (M, size)
        candidates.append(start + distance.topk(min(top_k, size), dim=1, largest=False).indices)
        start += size
    return torch.cat(candidates, dim=1).t().contiguous()


def _give_to_highest(candidates: Tensor, iou: Tensor, positive: Tensor, *, num_places: int) -> Tensor:
    """candidates, iou, positive: (C, M) -> (P,). Of equal IoUs the first object counts.

    Only candidates are looked at, never all pairs of anchors and objects.
    """
    num_objects = candidates.shape[1]
    places, absent = candidates.flatten(), -1.0
    claims = torch.where(positive, iou, absent).flatten()
    highest = iou.new_full((num_places,), absent).scatter_reduce(0, places, claims, "amax")
    wins = positive & (iou == highest[candidates])
    index = torch.arange(num_objects, device=iou.device).expand_as(candidates)
    winners = torch.where(wins, index, num_objects).flatten()
    owner = places.new_full((num_places,), num_objects).scatter_reduce(0, places, winners, "amin")
    return torch.where(owner < num_objects, owner, BACKGROUND)
