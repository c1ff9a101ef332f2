"""PAA (Kim and Lee 2020) as an auxiliary head (Co-DETR, section 4.4).

Legend: B images, P anchors of an image, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.losses import sigmoid_focal_loss
from dinox.matching import assign_max_iou, assign_paa
from dinox.modeling.auxiliary.anchors import Anchors
from dinox.modeling.auxiliary.branches import DensePredictions
from dinox.modeling.auxiliary.dense import SquareAnchorHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.targets import DenseTargets, at_least, one_hot
from dinox.structures import box_iou, generalized_box_iou

_LEAST_IOU = 1e-12  # a normaliser (mmdetection)


class PAAHead(SquareAnchorHead):
    """The losses of an object's candidates decide which of them are positive; the quality is the IoU of the box.

    Losses: ``class`` (focal), ``giou`` (weighted by IoU) and ``iou``. Their weights also make the losses that positives
    are chosen by. The score voting of PAA's section 3.4 is left out: at inference no head of Co-DETR remains.

    Args:
        embed_dim: channels of the pyramid.
        num_levels: of the pyramid.
        num_convs: of each tower (Co-DETR: 1; PAA: 4).
        candidate_iou: of an anchor with an object, so that it is a candidate.
        top_k: candidates of an object per level.
        detections: for :meth:`detect`; None: its defaults.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        num_convs: int = 1,
        candidate_iou: float = 0.1,
        top_k: int = 9,
        class_weight: float = 1.0,
        giou_weight: float = 1.3,
        iou_weight: float = 0.5,
        detections: DenseDetections | None = None,
    ):
        super().__init__(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_levels=num_levels,
            num_convs=num_convs,
            top_k=top_k,
            detections=detections,
        )
        self.candidate_iou = candidate_iou
        self.class_weight, self.giou_weight, self.iou_weight = class_weight, giou_weight, iou_weight

    def assign(
        self, anchors: Anchors, predictions: DensePredictions, image: int, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        threshold = self.candidate_iou
        candidates = assign_max_iou(
            anchors.of_image(image), boxes, positive_iou=threshold, negative_iou=threshold, least_iou=0.0
        )
        if len(boxes) == 0:
            return candidates
        index, chosen = anchors.valid_index[image], candidates.clamp(min=0)
        logits = predictions.logits[image, index]  # (anchors on the image, K)
        wanted = one_hot(labels[chosen], candidates >= 0, like=logits)
        losses = self.class_weight * sigmoid_focal_loss(logits, wanted).sum(-1)
        predicted = self.decode(anchors, predictions)[image, index]
        losses = losses + self.giou_weight * (1 - generalized_box_iou(predicted, boxes[chosen]))
        return assign_paa(candidates, losses, anchors.valid_sizes[image], len(boxes), top_k=self.top_k)

    def losses(self, predictions: DensePredictions, anchors: Anchors, targets: DenseTargets) -> dict[str, Tensor]:
        """Class and IoU are means over positives, GIoU over their IoU."""
        boxes = self.decode(anchors, predictions)
        wanted = box_iou(boxes.detach(), targets.boxes)[0] * targets.positive  # (B, P)
        num_positives, num_images = targets.positive.sum().float(), len(wanted)
        class_loss = sigmoid_focal_loss(predictions.logits, targets.one_hot_labels(predictions.logits))
        class_loss = (class_loss * targets.counted[..., None]).sum() / at_least(num_images, num_positives)
        giou_loss = (1 - generalized_box_iou(boxes, targets.boxes)) * wanted
        iou_loss = F.binary_cross_entropy_with_logits(predictions.quality, wanted, reduction="none")
        return {
            "class": self.class_weight * class_loss,
            "giou": self.giou_weight * giou_loss.sum() / at_least(_LEAST_IOU, wanted.sum()),
            "iou": self.iou_weight * (iou_loss * targets.positive).sum() / at_least(1, num_positives),
        }

    def scores(self, predictions: DensePredictions) -> tuple[Tensor, Tensor | None]:
        """Boxes are chosen, too, by the geometric mean of class probability and IoU (section 3.3)."""
        together = predictions.logits.sigmoid() * torch.sigmoid(predictions.quality)[..., None]
        return together.sqrt(), None
