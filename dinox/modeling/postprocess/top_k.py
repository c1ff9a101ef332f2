"""Raw predictions -> detections.

Legend: B images, N queries, K classes, M detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dinox.structures import RawPredictions, cxcywh_to_xyxy
from dinox.structures.boxes import image_size_as_box
from dinox.utils.numbers import fewer


@dataclass(frozen=True)
class RankedDetections:
    """boxes: (..., M, 4) xyxy as shares of the image; scores: (..., M), descending; classes: (..., M) int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class _BestPairs:
    """Detections are pairs of query and class, ranked by score."""

    def __init__(self, *, num_detections: int):
        self.num_detections = num_detections

    def __call__(self, predictions: RawPredictions, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """image_sizes: (height, width) of every image as the model saw it, unpadded. Boxes come out in that frame."""
        logits, boxes = predictions.logits[-1].float(), predictions.boxes[-1].float()
        padding = predictions.padding_mask
        detections = []
        for b, size in enumerate(image_sizes):
            queries = slice(None) if padding is None else ~padding[b]
            best = self.rank(logits[b][queries], boxes[b][queries])
            xyxy = Boxes(best.boxes * image_size_as_box(size, boxes))
            detections.append(Instances(size, pred_boxes=xyxy, scores=best.scores, pred_classes=best.classes))
        return detections

    def rank(self, logits: Tensor, boxes: Tensor, pairs: Tensor | None = None) -> RankedDetections:
        """Tensors to tensors, for one image or for batches without padded queries.

        logits: (..., N, K). boxes: (..., N, 4) normalised cxcywh. pairs: (..., M) flat indices of (query, class) to
        take instead of the best ones, as another runtime has ranked them.
        """
        scores = self.scores(logits)
        num_classes = scores.shape[-1]
        if pairs is None:
            pairs = self.best_pairs(scores)
        queries = torch.div(pairs, num_classes, rounding_mode="floor")
        return RankedDetections(
            boxes=cxcywh_to_xyxy(boxes.gather(-2, queries[..., None].expand(*queries.shape, 4))),
            scores=scores.flatten(-2).gather(-1, pairs),
            classes=pairs % num_classes,
        )


class TopKDetections(_BestPairs):
    """The ``num_detections`` best pairs of query and class of every image (300 in the papers); no NMS, no threshold.

    A query may appear with several classes.
    """

    def __init__(self, *, num_detections: int = 300):
        super().__init__(num_detections=num_detections)

    def scores(self, logits: Tensor) -> Tensor:
        """(..., N, K) -> (..., N, K)."""
        return logits.sigmoid()

    def best_pairs(self, scores: Tensor) -> Tensor:
        """(..., N, K) -> (..., M) flat indices, best first."""
        flat = scores.flatten(-2)
        return flat.topk(fewer(self.num_detections, flat.shape[-1])).indices

    def choices(self, scores: Tensor, pairs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The rankings behind pairs: what was ranked (R, S), and the indices (R, M) that were taken, best first.

        scores: (B, N, K); pairs: (B, M).
        """
        return [(scores.flatten(1), pairs)]


class BestClassDetections(_BestPairs):
    """Every query is one detection, of its most likely class; for logits whose last one is "no object" (DETR).

    num_detections: the best of them are kept, 100 of DETR's 100 queries.
    """

    def __init__(self, *, num_detections: int = 100):
        super().__init__(num_detections=num_detections)

    def scores(self, logits: Tensor) -> Tensor:
        """(..., N, K + 1) -> (..., N, K)."""
        return logits.softmax(-1)[..., :-1]

    def best_pairs(self, scores: Tensor) -> Tensor:
        """(..., N, K) -> (..., M) flat indices, best first."""
        best, classes = scores.max(-1)
        queries = best.topk(fewer(self.num_detections, best.shape[-1])).indices
        return queries * scores.shape[-1] + classes.gather(-1, queries)

    def choices(self, scores: Tensor, pairs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The rankings behind pairs, as of ``TopKDetections``: one of the queries, and one of the classes of each."""
        num_classes = scores.shape[-1]
        queries = torch.div(pairs, num_classes, rounding_mode="floor")
        of_queries = scores.gather(1, queries[..., None].expand(-1, -1, num_classes))  # (B, M, K)
        return [(scores.amax(-1), queries), (of_queries.flatten(0, 1), (pairs % num_classes).flatten()[:, None])]
