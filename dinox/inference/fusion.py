"""Detections of one image from several views of it, as one list.

Symbols: n views, N detections of the main one, O of another one. Boxes: absolute x0, y0, x1, y1.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor
from torchvision.ops import batched_nms


class OneToOneEnsemble:
    """DINO's appendix A: set prediction does not detect an object twice, so no view's detections need suppression.

    The detections are those of the main view. Each looks, in every other view, for the box of its class that overlaps
    it most; if that is by more than ``iou_threshold``, it is its partner. The box becomes the average over itself and
    its partners, with the weight of the view times the score as weights. What has no partner stays exactly as it is.
    The paper averages boxes only: scores are the main view's.

    Equation 3 divides by the number of boxes that are averaged, which would shrink them, as the weights are below 1:
    here their sum is divided by the sum of the weights.
    """

    def __init__(self, *, iou_threshold: float = 0.7):
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold: expected a number from 0 to 1, got {iou_threshold!r}")
        self.iou_threshold = iou_threshold

    def __call__(self, found: Sequence[Instances], weights: Sequence[float]) -> Instances:
        """found: per view, the main one first, with ``pred_boxes``, ``scores`` and ``pred_classes``. weights: (n,)"""
        main, *others = found
        boxes = main.pred_boxes.tensor
        share = weights[0] * main.scores  # (N,)
        total, averaged = share, boxes * share[:, None]
        partnered = torch.zeros_like(share, dtype=torch.bool)
        for other, weight in zip(others, weights[1:], strict=True):
            if len(other) == 0:
                continue
            partner, is_one = self._partners(main, other)
            share = torch.where(is_one, weight * other.scores[partner], 0)
            averaged = averaged + share[:, None] * other.pred_boxes.tensor[partner]
            total, partnered = total + share, partnered | (share > 0)
        averaged = averaged / total[:, None].clamp(min=torch.finfo(total.dtype).tiny)
        boxes = torch.where(partnered[:, None], averaged, boxes)
        return Instances(main.image_size, pred_boxes=Boxes(boxes), scores=main.scores, pred_classes=main.pred_classes)

    def _partners(self, main: Instances, other: Instances) -> tuple[Tensor, Tensor]:
        """(N,) index of the best one in ``other``, and (N,) whether it is good enough."""
        iou = pairwise_iou(main.pred_boxes, other.pred_boxes)  # (N, O)
        iou = iou.masked_fill(main.pred_classes[:, None] != other.pred_classes[None], -1)
        best, partner = iou.max(1)
        return partner, best > self.iou_threshold


class NMSFusion:
    """What detectors that need NMS do, for comparison: detections of all views together, of which those that overlap a
    better one of their class by more than ``iou_threshold`` are left out. As many as the main view has are kept.
    """

    def __init__(self, *, iou_threshold: float = 0.7):
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold: expected a number from 0 to 1, got {iou_threshold!r}")
        self.iou_threshold = iou_threshold

    def __call__(self, found: Sequence[Instances], weights: Sequence[float]) -> Instances:
        """As ``OneToOneEnsemble``; a view's weight multiplies its scores where they are compared."""
        boxes = torch.cat([each.pred_boxes.tensor for each in found])
        scores, classes = (torch.cat([each.get(name) for each in found]) for name in ("scores", "pred_classes"))
        ranks = torch.cat([weight * each.scores for each, weight in zip(found, weights, strict=True)])
        kept = batched_nms(boxes.float(), ranks.float(), classes, self.iou_threshold)[: len(found[0])]
        return Instances(
            found[0].image_size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept]
        )
