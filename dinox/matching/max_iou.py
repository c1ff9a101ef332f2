"""Label assignment by thresholds of the IoU (Faster R-CNN, section 3.1.2; RetinaNet, section 4).

Legend: P places (anchors) of one image, M objects.
"""

import torch
from torch import Tensor

from dinox.structures import BACKGROUND, box_iou

IGNORED = -2
"""In what is assigned: neither an object nor background; the place learns nothing."""

_OBJECTS_AT_ONCE = 16  # of many anchors and many objects, not all pairs are in memory at the same time


@torch.no_grad()
def assign_max_iou(
    anchors: Tensor, objects: Tensor, *, positive_iou: float, negative_iou: float, least_iou: float | None
) -> Tensor:
    """The object that each anchor of one image learns.

    An anchor learns the object of its highest IoU if that is at least ``positive_iou``, background if it is below
    ``negative_iou``, and nothing in between. With ``least_iou``, moreover, every object gets all anchors that have the
    object's own highest IoU, if that is above 0 and at least ``least_iou``; where several objects want an anchor so,
    the last one gets it.

    detectron2's ``Matcher`` differs in the latter: it knows no least IoU, leaves such an anchor to the object of the
    *anchor's* highest IoU, and gives an object that no anchor overlaps to all anchors. mmdetection's ``MaxIoUAssigner``
    does the latter, too, where its ``min_pos_iou`` is 0 (RetinaNet, PAA): such an object takes all anchors, also those
    of the objects before it. Here it gets none.

    Args:
        anchors: (P, 4) absolute xyxy; without those in padding.
        objects: (M, 4) absolute xyxy.

    Returns:
        (P,) int64: index of the object, -1 = background, -2 = ignored.
    """
    highest = anchors.new_zeros(len(anchors))
    nearest = torch.full_like(highest, BACKGROUND, dtype=torch.int64)
    claimed_by = nearest.clone()
    if len(objects) == 0 or len(anchors) == 0:
        return nearest
    start = 0
    for some in objects.split(_OBJECTS_AT_ONCE):
        iou, _ = box_iou(some[:, None], anchors)  # (m, P)
        best, index = iou.max(0)
        nearest = torch.where(best > highest, start + index, nearest)
        highest = torch.maximum(best, highest)
        if least_iou is not None:
            claimed_by = torch.maximum(claimed_by, _claims(iou, least_iou, start))
        start += len(some)
    assigned = torch.where(highest >= positive_iou, nearest, IGNORED)
    assigned = torch.where(highest < negative_iou, BACKGROUND, assigned)
    return torch.where(claimed_by >= 0, claimed_by, assigned)


def _claims(iou: Tensor, least_iou: float, start: int) -> Tensor:
    """iou: (m, P) of the objects from ``start`` on -> (P,): the last one whose highest IoU this is, else -1."""
    best = iou.amax(1, keepdim=True)  # (m, 1)
    claims = (iou == best) & (best > 0) & (best >= least_iou)
    index = torch.arange(start, start + len(iou), device=iou.device)[:, None]
    return torch.where(claims, index, -1).amax(0)
