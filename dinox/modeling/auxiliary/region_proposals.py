"""The region proposal network of the Faster R-CNN head (Ren et al. 2015; Co-DETR's anchors, numbers and losses).

Legend: B images, L levels, A anchors of a cell, P anchors of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.matching import Sampled, assign_max_iou, sample_balanced
from dinox.modeling.auxiliary.anchors import Anchors, apply_deltas, octave_anchors, place_anchors
from dinox.modeling.auxiliary.targets import at_least
from dinox.structures import HeadPyramid
from dinox.utils.precision import at_least_float32

_DELTA_STDS = (1.0, 1.0, 1.0, 1.0)


class RegionProposals(nn.Module):
    """Nine anchors per cell, objects against background; gives the best boxes of every image.

    Parameters are those of detectron2's ``StandardRPNHead``; its ``RPN`` assigns and normalises otherwise, and needs an
    event storage.

    Args:
        embed_dim: channels of the pyramid.
        positive_iou, negative_iou, least_iou: of :func:`~dinox.matching.assign_max_iou`.
        num_samples, positive_fraction: anchors of an image that learn, and how many of them may be positive.
        before_nms, after_nms: in training, how many boxes of every level go into non-maximum suppression, and how many
            of all levels are kept. tested_before_nms, tested_after_nms: in evaluation.
        nms_iou: of non-maximum suppression, within a level. tested_nms_iou: in evaluation; None: the same.
        class_weight, bbox_weight: of binary cross-entropy, and of the L1 distance of the deltas; both are divided by
            the number of sampled anchors, where no positive or no negative one of an image counts as one (mmdetection).
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        least_iou: float = 0.3,
        num_samples: int = 256,
        positive_fraction: float = 0.5,
        before_nms: int = 4000,
        after_nms: int = 1000,
        tested_before_nms: int = 1000,
        tested_after_nms: int = 1000,
        nms_iou: float = 0.7,
        tested_nms_iou: float | None = None,
        class_weight: float = 1.0,
        bbox_weight: float = 1.0,
    ):
        super().__init__()
        self.register_buffer("cell_anchors", octave_anchors(), persistent=False)
        self.head = StandardRPNHead(in_channels=embed_dim, num_anchors=len(self.cell_anchors))
        self.positive_iou, self.negative_iou, self.least_iou = positive_iou, negative_iou, least_iou
        self.num_samples, self.positive_fraction = num_samples, positive_fraction
        self.before_nms = {True: before_nms, False: tested_before_nms}  # by self.training
        self.after_nms = {True: after_nms, False: tested_after_nms}
        self.nms_iou = {True: nms_iou, False: nms_iou if tested_nms_iou is None else tested_nms_iou}
        self.class_weight, self.bbox_weight = class_weight, bbox_weight
        self.to_deltas = Box2BoxTransform(weights=_DELTA_STDS)

    def forward(
        self, pyramid: HeadPyramid, instances: Sequence[Instances] | None = None
    ) -> tuple[list[Boxes], dict[str, Tensor]]:
        """Proposals of every image, best first, clipped to it; and with ``instances`` the losses "rpn_class" and
        "rpn_bbox", else none.
        """
        anchors = place_anchors(pyramid, self.cell_anchors)
        logits, deltas = self.predict(pyramid)
        losses = {} if instances is None else self.losses(logits, deltas, anchors, pyramid, instances)
        return self._propose(logits.detach(), deltas.detach(), anchors, pyramid), losses

    def predict(self, pyramid: HeadPyramid) -> tuple[Tensor, Tensor]:
        """Objectness logits (B, P) and box deltas (B, P, 4)."""
        logits, deltas = self.head(pyramid.maps)
        logits = [each.permute(0, 2, 3, 1).flatten(1) for each in logits]  # (B, A, h, w) -> (B, h * w * A)
        deltas = [each.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for each in deltas]
        return at_least_float32(torch.cat(logits, dim=1)), at_least_float32(torch.cat(deltas, dim=1))

    def losses(
        self, logits: Tensor, deltas: Tensor, anchors: Anchors, pyramid: HeadPyramid, instances: Sequence[Instances]
    ) -> dict[str, Tensor]:
        class_losses, bbox_losses, counts = [], [], []
        for image, objects in enumerate(instances):
            boxes = objects.gt_boxes.tensor.to(anchors.boxes)
            index = anchors.valid_index[image]
            assigned = assign_max_iou(
                anchors.of_image(image),
                boxes,
                positive_iou=self.positive_iou,
                negative_iou=self.negative_iou,
                least_iou=self.least_iou,
            )
            sampled = self.sample(assigned, pyramid.generator_of(image, "region proposals"))
            wanted = torch.zeros_like(assigned[sampled.index], dtype=logits.dtype)
            wanted[: len(sampled.positive)] = 1.0
            class_losses.append(
                F.binary_cross_entropy_with_logits(logits[image, index[sampled.index]], wanted, reduction="sum")
            )
            positive = index[sampled.positive]
            target = self.to_deltas.get_deltas(anchors.boxes[positive], boxes[assigned[sampled.positive]])
            bbox_losses.append((deltas[image, positive] - target).abs().sum())
            counts.append(max(len(sampled.positive), 1) + max(len(sampled.background), 1))
        num_sampled = at_least(1.0, logits.new_tensor(float(sum(counts))))
        return {
            "rpn_class": self.class_weight * torch.stack(class_losses).sum() / num_sampled,
            "rpn_bbox": self.bbox_weight * torch.stack(bbox_losses).sum() / num_sampled,
        }

    def sample(self, assigned: Tensor, generator: torch.Generator | None) -> Sampled:
        """assigned: (P,) of one image. Replace it to inject recorded choices."""
        return sample_balanced(
            assigned,
            num_samples=self.num_samples,
            positive_fraction=self.positive_fraction,
            generator=generator,
        )

    @torch.no_grad()
    def _propose(self, logits: Tensor, deltas: Tensor, anchors: Anchors, pyramid: HeadPyramid) -> list[Boxes]:
        boxes = apply_deltas(anchors.boxes, deltas, _DELTA_STDS).float()  # (B, P, 4)
        found = find_top_rpn_proposals(
            list(boxes.split(anchors.level_sizes, dim=1)),
            list(logits.float().split(anchors.level_sizes, dim=1)),
            list(pyramid.image_sizes),
            self.nms_iou[self.training],
            self.before_nms[self.training],
            self.after_nms[self.training],
            0.0,  # boxes may be of any size
            self.training,
        )
        return [each.proposal_boxes for each in found]
