"""Detections of one-stage heads: what is left of all anchors after non-maximum suppression.

Legend: B images, P anchors of an image, K classes.
"""

from __future__ import annotations

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dinox.modeling.auxiliary.anchors import Anchors
from dinox.structures import HeadPyramid
from dinox.utils.ranges import check_range


class DenseDetections:
    """Keeps on every level the best pairs of anchor and class above a threshold, and suppresses per class.

    Args:
        score_threshold: of the class probability.
        pre_nms_top_k: pairs per level.
        nms_threshold: IoU above which the lower score goes; .6 for all heads here but RetinaNet's .5.
        max_detections: of an image.
    """

    def __init__(
        self,
        *,
        score_threshold: float = 0.05,
        pre_nms_top_k: int = 1000,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
    ):
        for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
            check_range(name, value, 0, 1)
        for name, value in (("pre_nms_top_k", pre_nms_top_k), ("max_detections", max_detections)):
            check_range(name, value, 1)
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.pre_nms_top_k, self.max_detections = pre_nms_top_k, max_detections

    def __call__(
        self, pyramid: HeadPyramid, anchors: Anchors, *, probability: Tensor, boxes: Tensor, quality: Tensor | None
    ) -> list[Instances]:
        """probability: (B, P, K). boxes: (B, P, 4) absolute xyxy. quality: (B, P) in [0, 1], a factor of the score
        (None: 1) after the pairs are chosen. Returns ``pred_boxes``, ``scores`` and ``pred_classes`` of every image,
        best first, in the frame of the model's input.
        """
        quality = torch.ones_like(probability[..., 0]) if quality is None else quality
        probability = probability * anchors.valid()[..., None]
        return [
            self._detect(*image, anchors.level_sizes)
            for image in zip(probability, boxes, quality, pyramid.image_sizes, strict=True)
        ]

    def _detect(self, probability, boxes, quality, image_size, level_sizes) -> Instances:
        places, classes = self._choose(probability, level_sizes)
        scores = probability[places, classes] * quality[places]
        clipped = Boxes(boxes[places])
        clipped.clip(image_size)
        kept = batched_nms(clipped.tensor, scores, classes, self.nms_threshold)[: self.max_detections]
        return Instances(image_size, pred_boxes=clipped[kept], scores=scores[kept], pred_classes=classes[kept])

    def _choose(self, probability: Tensor, level_sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """probability: (P, K) -> anchors and classes of the chosen pairs."""
        places, classes, start = [], [], 0
        for level in probability.split(level_sizes):
            scores, pairs = level.flatten().topk(min(self.pre_nms_top_k, level.numel()))
            pairs = pairs[scores > self.score_threshold]
            places.append(start + pairs // level.shape[1])
            classes.append(pairs % level.shape[1])
            start += len(level)
        return torch.cat(places), torch.cat(classes)
