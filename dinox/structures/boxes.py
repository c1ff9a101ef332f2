"""Box conversions and pairwise geometry.

Two formats exist in dinox, and only this file converts between them:

* ``cxcywh``: centre x, centre y, width, height, normalised to [0, 1] by the image's own (unpadded) size. Models,
  losses, costs and anchor boxes use it.
* ``xyxy``: two corners; absolute pixels at the door (detectron2's ``Boxes``), or normalised inside a function.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Choice = Callable[[Tensor, Tensor], Tensor]  # torch.minimum or torch.maximum
Division = Callable[[Tensor, Tensor], Tensor]  # of areas, for which the second may be 0

INVERSE_SIGMOID_EPS = 1e-3  # detrex and the official DINO; logits saturate at +-6.9078
_DIVISION_EPS = 1e-6  # in the denominators of IoU and GIoU: added (DINO's code), or their least value (mmdetection)
_LEAST_AREA = 1e-12  # 1e-6 square pixels of an image of a million, as a share of it


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) cxcywh -> (..., 4) xyxy, same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (..., 4) cxcywh, same unit. A box with x2 < x1 gets a negative width."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def image_size_as_box(image_size: tuple[int, int], like: Tensor) -> Tensor:
    """(height, width) -> tensor [width, height, width, height], the factor between normalised and absolute boxes."""
    height, width = image_size
    return torch.tensor([width, height, width, height], dtype=like.dtype, device=like.device)


def inverse_sigmoid(x: Tensor, eps: float = INVERSE_SIGMOID_EPS) -> Tensor:
    """Logit of ``x`` in [0, 1], finite everywhere: both ``x`` and ``1 - x`` are kept at or above ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (...) area."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of xyxy boxes, broadcasting: (..., 4) and (..., 4) -> (...), (...).

    Pairwise matrices come from ``box_iou(a[:, None], b[None])``.
    """
    overlap, union = _overlap_and_union(boxes1, boxes2)
    return _divide_with_eps(overlap, union), union


def clamped_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of xyxy boxes as mmdetection's: exact where the union is at least 1e-6, broadcasting as :func:`box_iou`.

    The unit matters: of normalised boxes, 1e-6 is 4 pixels in an image of 2000 x 2000.
    """
    overlap, union = _overlap_and_union(boxes1, boxes2)
    return overlap / union.clamp(min=_DIVISION_EPS)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU in (-1, 1] of xyxy boxes, broadcasting as :func:`box_iou`.

    The 1e-6 in the denominators, which is DINO's, is not small beside small normalised boxes: an object of 4 x 4 pixels
    in an image of 800 x 800 has a GIoU of 0.96 with itself. See :func:`exact_generalized_box_iou`.
    """
    return _generalized_iou(boxes1, boxes2, _divide_with_eps)


def exact_generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] of xyxy boxes of any size and unit, broadcasting as :func:`box_iou`; 0 for two boxes
    that are one point. What mmdetection comes to, which takes it in pixels."""
    return _generalized_iou(boxes1, boxes2, lambda part, whole: part / whole.clamp(min=_LEAST_AREA))


def _generalized_iou(boxes1: Tensor, boxes2: Tensor, divide: Division) -> Tensor:
    overlap, union = _overlap_and_union(boxes1, boxes2)
    enclosing = _area_between(boxes1, boxes2, torch.minimum, torch.maximum)
    # In place: of all pairs, fresh memory for every step takes longer than the steps.
    return divide(overlap, union).sub_(divide(enclosing - union, enclosing))


def _overlap_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    overlap = _area_between(boxes1, boxes2, torch.maximum, torch.minimum)
    return overlap, (box_area(boxes1) + box_area(boxes2)).sub_(overlap)


def _divide_with_eps(part: Tensor, whole: Tensor) -> Tensor:
    return part / (whole + _DIVISION_EPS)


def _area_between(boxes1: Tensor, boxes2: Tensor, first: Choice, last: Choice) -> Tensor:
    """Area of the boxes from the ``first`` of two left and top sides to the ``last`` of two right and bottom sides.

    Side by side, since broadcast tensors of four numbers in a row are several times as slow as four of one.
    """
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    width = last(right1, right2).sub_(first(left1, left2)).clamp_(min=0)
    return width.mul_(last(bottom1, bottom2).sub_(first(top1, top2)).clamp_(min=0))


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """points (..., 2), xyxy boxes (..., 4) -> (..., 4): how far the left, top, right and bottom side is; negative where
    the point lies beyond it."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
