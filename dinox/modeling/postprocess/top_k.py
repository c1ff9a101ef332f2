"""Raw predictions -> detections."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dinox.structures import RawPredictions, cxcywh_to_xyxy
from dinox.structures.boxes import image_size_as_box


class TopKDetections:
    """The ``num_detections`` best pairs of query and class of every image (300 in the papers); no NMS, no threshold.

    A query may appear with several classes.
    """

    def __init__(self, *, num_detections: int = 300):
        self.num_detections = num_detections

    def __call__(self, predictions: RawPredictions, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """image_sizes: (height, width) of every image as the model saw it, unpadded. Boxes come out in that frame."""
        logits, boxes = predictions.logits[-1].float(), predictions.boxes[-1].float()
        padding = predictions.padding_mask
        detections = []
        for b, size in enumerate(image_sizes):
            queries = slice(None) if padding is None else ~padding[b]
            detections.append(self._best(logits[b][queries], boxes[b][queries], size))
        return detections

    def _best(self, logits: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Instances:
        """logits: (N, K), boxes: (N, 4) normalised cxcywh of one image."""
        num_classes = logits.shape[-1]
        scores, pairs = logits.sigmoid().flatten().topk(min(self.num_detections, logits.numel()))
        queries = torch.div(pairs, num_classes, rounding_mode="floor")
        xyxy = cxcywh_to_xyxy(boxes[queries]) * image_size_as_box(image_size, boxes)
        return Instances(image_size, pred_boxes=Boxes(xyxy), scores=scores, pred_classes=pairs % num_classes)
