"""Non-maximum suppression behind a ranking, within each class.

Stable-DINO is tested with NMS behind its 300 best detections (table 6: 49.0 to 49.2 AP of DINO); Co-DINO with linear
soft-NMS of its 900 best ones. Boxes are compared in absolute pixels as the model saw the image: by Stable-DINO's code
before they are clipped to it, by Co-DINO's afterwards.

Legend: M ranked detections of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import batched_nms

from dinox.structures import RawPredictions, box_iou
from dinox.utils.ranges import check_whole

logger = logging.getLogger(__name__)


class _Suppression:
    """Wraps a ranking: what it gives is suppressed, image by image."""

    def __init__(
        self, *, ranking: Callable[[RawPredictions, list[tuple[int, int]]], list[Instances]], iou_threshold: float
    ):
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold: expected a number from 0 to 1, got {iou_threshold!r}")
        self.ranking, self.iou_threshold = ranking, iou_threshold

    def __call__(self, predictions: RawPredictions, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """As of the ranking. ``ranking`` and ``suppress`` one after the other give both, in one pass."""
        return [self.suppress(found) for found in self.ranking(predictions, image_sizes)]

    def suppress(self, found: Instances) -> Instances:
        """Detections of one image, with ``pred_boxes``, ``scores`` and ``pred_classes``, best first; so is the
        result."""
        raise NotImplementedError


class ClassNMS(_Suppression):
    """Of two detections of one class whose IoU is above ``iou_threshold``, the one with the lower score goes.

    Scores stay as they are. Nothing takes the place of what is left out, for the ranking comes first, as in
    Stable-DINO's release.
    """

    def __init__(
        self,
        *,
        ranking: Callable[[RawPredictions, list[tuple[int, int]]], list[Instances]],
        iou_threshold: float = 0.8,
    ):
        super().__init__(ranking=ranking, iou_threshold=iou_threshold)

    def suppress(self, found: Instances) -> Instances:
        # Classes are kept apart by an offset of the largest coordinate. Boxes that reach beyond the image have negative
        # coordinates and would come into the class before theirs; and float32 has 1/8 pixel left at the last of 1,000
        # classes.
        boxes = found.pred_boxes.tensor.double()
        boxes = boxes - boxes.min() if len(boxes) else boxes
        kept = batched_nms(boxes, found.scores.double(), found.pred_classes, self.iou_threshold)
        return found[kept.sort().values]  # by rank, equal scores too


class ClassSoftNMS(_Suppression):
    """Linear soft-NMS (Bodla et al. 2017) within each class, as Co-DINO is tested.

    From the best detection on, the scores of all others of its class whose IoU with it is above ``iou_threshold`` are
    multiplied by 1 - IoU; the best of these is next. Then scores below ``min_score`` are left out, and the best
    ``num_detections`` are kept; that the ranking gives fewer is logged as a warning. Boxes are clipped to the image
    first, as in the authors' code: what lies beyond it makes no two boxes differ, or overlap.
    """

    def __init__(
        self,
        *,
        ranking: Callable[[RawPredictions, list[tuple[int, int]]], list[Instances]],
        iou_threshold: float = 0.8,
        min_score: float = 1e-3,
        num_detections: int = 300,
    ):
        super().__init__(ranking=ranking, iou_threshold=iou_threshold)
        check_whole("num_detections", num_detections, 1)
        ranked = getattr(ranking, "num_detections", num_detections)
        if ranked < num_detections:
            # No error: a config with fewer queries by an override is good, and all of its ranked pairs are kept.
            logger.warning(
                "num_detections: %d are asked for, but the ranking gives no more than %d. For more, set "
                "model.postprocess.ranking.num_detections too.",
                num_detections,
                ranked,
            )
        if not min_score >= 0:
            raise ValueError(f"min_score: expected a number of at least 0, got {min_score!r}")
        self.min_score, self.num_detections = min_score, num_detections

    def suppress(self, found: Instances) -> Instances:
        boxes = found.pred_boxes.clone()  # those before NMS stay as they are
        boxes.clip(found.image_size)
        scores = soft_nms_scores(boxes.tensor, found.scores, found.pred_classes, self.iou_threshold)
        order = scores.argsort(descending=True, stable=True)[: self.num_detections]
        order = order[scores[order] >= self.min_score]
        kept = found[order]
        kept.pred_boxes, kept.scores = boxes[order], scores[order]
        return kept


def soft_nms_scores(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """The scores (M,) that linear soft-NMS leaves to detections; in the order given.

    boxes: (M, 4) xyxy. scores: (M,). classes: (M,) int64.

    Taking one detection after the other would be M steps. A detection with a better score than all that it overlaps
    with is taken before any of these, whatever happens elsewhere: so all such ones are taken at once, and there are as
    many steps as detections in the longest chain of overlaps.
    """
    iou, _ = box_iou(boxes[:, None], boxes[None])
    itself = torch.eye(len(iou), dtype=torch.bool, device=iou.device)
    near = (iou > iou_threshold) & (classes[:, None] == classes) & ~itself
    (crowded,) = near.any(1).nonzero(as_tuple=True)
    result = scores.clone()
    result[crowded] = _decayed(scores[crowded], iou[crowded][:, crowded], near[crowded][:, crowded])
    return result


def _decayed(scores: Tensor, iou: Tensor, near: Tensor) -> Tensor:
    """scores: (M,); iou: (M, M); near: (M, M) bool, whether two of them lower each other's score."""
    factors = torch.where(near, 1 - iou, 1.0)
    earlier = torch.ones_like(near).tril(-1)  # of equal scores, the first is the best
    waiting = torch.ones_like(scores, dtype=torch.bool)
    while waiting.any():
        better = (scores > scores[:, None]) | ((scores == scores[:, None]) & earlier)
        behind = (near & better & waiting).any(1)
        taken, waiting = waiting & ~behind, waiting & behind
        lowered = scores * torch.where(taken, factors, 1.0).prod(1)
        scores = torch.where(waiting, lowered, scores)
    return scores
