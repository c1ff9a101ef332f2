"""What Mask R-CNN adds to Faster R-CNN (He et al. 2017), for the auxiliary head of that name in Co-DETR.

Legend: D channels, K classes, R positive boxes of all images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.modeling.auxiliary.faster_rcnn import SampledBoxes, pool_boxes
from dinox.modeling.auxiliary.targets import at_least
from dinox.structures import HeadPyramid
from dinox.utils.precision import at_least_float32

_POOLED = 14  # cells of pooled features; masks have twice as many


class MaskBranch(nn.Module):
    """Masks of 28x28 cells for positive boxes; every class has its own. The loss is the mean of the cells' binary
    cross-entropy.

    num_convs: before the upsampling.
    """

    def __init__(self, *, embed_dim: int, num_classes: int, num_convs: int = 4, weight: float = 1.0):
        super().__init__()
        self.head = MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=embed_dim, height=_POOLED, width=_POOLED),
            num_classes=num_classes,
            conv_dims=[embed_dim] * (num_convs + 1),
        )
        self.weight = weight

    def forward(self, pyramid: HeadPyramid, chosen: Sequence[SampledBoxes], instances: Sequence[Instances]) -> Tensor:
        """instances: with ``gt_masks``, which images without positive boxes need not have."""
        positives = [each.boxes[: each.num_positive] for each in chosen]
        pooled = pool_boxes(pyramid, positives, _POOLED)
        logits = at_least_float32(self.head.layers(pooled))  # (R, K, 28, 28)
        labels, masks = [], []
        for boxes, each, objects in zip(positives, chosen, instances, strict=True):
            if len(boxes) == 0:
                continue
            index = each.target_index[: each.num_positive]
            labels.append(objects.gt_classes[index].long())
            masks.append(objects.gt_masks[index].crop_and_resize(boxes, logits.shape[-1]).to(logits.device))
        num_cells = at_least(1.0, logits.new_tensor(float(len(logits)))) * logits.shape[-1] ** 2
        if not labels:
            return logits.sum() * 0.0
        logits = logits[torch.arange(len(logits), device=logits.device), torch.cat(labels)]  # (R, 28, 28)
        wanted = torch.cat(masks).to(logits.dtype)
        return self.weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / num_cells
