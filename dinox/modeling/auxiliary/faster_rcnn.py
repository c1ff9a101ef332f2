"""Faster R-CNN and Mask R-CNN as auxiliary heads (Co-DETR, section 3.2 and table 1; numbers of the authors' code).

Legend: B images, D channels, K classes, R boxes of all images, P samples of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers import group_norm
from dinox.matching import Sampled, assign_max_iou, sample_balanced
from dinox.modeling.auxiliary.anchors import DELTA_STDS, apply_deltas
from dinox.modeling.auxiliary.region_proposals import RegionProposals
from dinox.modeling.auxiliary.targets import at_least
from dinox.structures import BACKGROUND, HeadOutput, HeadPyramid, HeadSamples, generalized_box_iou
from dinox.utils.gather import gather_rows
from dinox.utils.precision import at_least_float32

Regression = Literal["class_specific", "class_agnostic"]
"""A box for each class, or one for all of them."""

_FINEST = 14  # strides of the finest level: boxes of fewer than twice as many are pooled from it
_BOX_SIZE = 7  # cells of pooled features


@dataclass(frozen=True)
class SampledBoxes:
    """Boxes of one image that learn. boxes: (n, 4) absolute xyxy, positives first. target_index: (n,) int64 into the
    objects, -1 = background. num_positive: of them."""

    boxes: Tensor
    target_index: Tensor
    num_positive: int


class FasterRCNNHead(nn.Module):
    """Region proposals, and a box head with regression of decoded boxes.

    Losses: "rpn_class", "rpn_bbox", "class" (cross-entropy) and "giou", and "mask" with a mask branch; the weights are
    Co-DETR's, before its factor for auxiliary heads. Proposals read all levels, boxes all but the last one.

    Args:
        embed_dim: channels of the pyramid.
        proposals: None: its defaults.
        mask_branch: what makes it Mask R-CNN; None: boxes only.
        positive_iou: of a proposal to be positive; below it, it is background.
        num_samples, positive_fraction: boxes of an image that learn, and how many of them may be positive.
        num_convs: 3x3 convolutions of the box head with GroupNorm, before its linear layers; 4 with one of the latter
            for ViT-L.
        hidden_dims: of the box head's linear layers.
        regression: "class_agnostic" for ViT-L.
        delta_stds: standard deviations of the deltas of x, y, width and height; half of these for ViT-L.
        class_weight, giou_weight: both losses are divided by the number of sampled boxes.
        nms_iou, max_detections: for :meth:`detect`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        proposals: RegionProposals | None = None,
        mask_branch: nn.Module | None = None,
        positive_iou: float = 0.5,
        num_samples: int = 512,
        positive_fraction: float = 0.25,
        num_convs: int = 0,
        hidden_dims: Sequence[int] = (1024, 1024),
        regression: Regression = "class_specific",
        delta_stds: Sequence[float] = DELTA_STDS,
        class_weight: float = 1.0,
        giou_weight: float = 10.0,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ):
        super().__init__()
        self.proposals = RegionProposals(embed_dim=embed_dim) if proposals is None else proposals
        pooled = ShapeSpec(channels=embed_dim, height=_BOX_SIZE, width=_BOX_SIZE)
        if regression not in get_args(Regression):
            choices = ", ".join(map(repr, get_args(Regression)))
            raise ValueError(f"regression must be one of {choices}, got {regression!r}")
        self.box_head = FastRCNNConvFCHead(
            pooled, conv_dims=[embed_dim] * num_convs, fc_dims=list(hidden_dims), conv_norm=group_norm
        )
        self.delta_stds = tuple(delta_stds)
        self.predictor = FastRCNNOutputLayers(
            self.box_head.output_shape,
            box2box_transform=Box2BoxTransform(weights=tuple(1 / std for std in self.delta_stds)),
            num_classes=num_classes,
            cls_agnostic_bbox_reg=regression == "class_agnostic",
            test_nms_thresh=nms_iou,
            test_topk_per_image=max_detections,
        )
        self.mask_branch = mask_branch
        self.num_classes = num_classes
        self.positive_iou = positive_iou
        self.num_samples, self.positive_fraction = num_samples, positive_fraction
        self.class_weight, self.giou_weight = class_weight, giou_weight
        for layer in self.box_head.fcs:
            nn.init.xavier_uniform_(layer.weight)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.mask_branch is None else ("gt_masks",)

    def check_strides(self, strides: Sequence[int]) -> None:
        """Raises ValueError unless boxes can be pooled from all levels but the last one."""
        pooled = list(strides[:-1])
        powers = [2 ** round(math.log2(pooled[0])) * 2**i for i in range(len(pooled))] if pooled else []
        if not pooled or pooled != powers:
            raise ValueError(
                f"expected a pyramid of at least two levels whose strides are powers of 2, each twice the one before, "
                f"got strides {list(strides)}: choose a backbone or an adapter with such levels"
            )

    def forward(self, pyramid: HeadPyramid, instances: Sequence[Instances]) -> HeadOutput:
        proposals, losses = self.proposals(pyramid, instances)
        chosen = [
            self._sample_boxes(*each, pyramid.generator_of(image, "boxes that learn"))
            for image, each in enumerate(zip(proposals, instances, strict=True))
        ]
        pooled = pool_boxes(pyramid, [each.boxes for each in chosen], _BOX_SIZE)  # (R, D, 7, 7)
        losses.update(self.losses(*self.predictor(self.box_head(pooled)), chosen, instances))
        if self.mask_branch is not None:
            losses["mask"] = self.mask_branch(pyramid, chosen, instances)
        return HeadOutput(losses, _samples(chosen, pooled))

    def losses(
        self, logits: Tensor, deltas: Tensor, chosen: Sequence[SampledBoxes], instances: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """logits: (R, K + 1), the last one is background. deltas: (R, 4 K), or (R, 4) if they are of any
        class. Predicted boxes are not clipped."""
        logits, deltas = at_least_float32(logits), at_least_float32(deltas)
        labels = torch.cat([_labels(*each, self.num_classes) for each in zip(chosen, instances, strict=True)])  # (R,)
        targets = torch.cat([_target_boxes(*each) for each in zip(chosen, instances, strict=True)])  # (R, 4)
        positive = labels < self.num_classes
        deltas = deltas.unflatten(1, (-1, 4))  # (R, K or 1, 4)
        of_class = labels.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
        deltas = deltas.gather(1, of_class)[:, 0]  # (R, 4)
        boxes = apply_deltas(torch.cat([each.boxes for each in chosen]).to(deltas.dtype), deltas, self.delta_stds)
        num_boxes = at_least(1.0, logits.new_tensor(float(len(labels))))
        giou = generalized_box_iou(boxes, targets.to(boxes))
        return {
            "class": self.class_weight * F.cross_entropy(logits, labels, reduction="sum") / num_boxes,
            "giou": self.giou_weight * ((1 - giou) * positive).sum() / num_boxes,
        }

    def sample(self, assigned: Tensor, generator: torch.Generator | None) -> Sampled:
        """assigned: (n,) of one image. Replace it to inject recorded choices."""
        return sample_balanced(
            assigned,
            num_samples=self.num_samples,
            positive_fraction=self.positive_fraction,
            generator=generator,
        )

    @torch.no_grad()
    def detect(self, pyramid: HeadPyramid) -> list[Instances]:
        """``pred_boxes`` (absolute xyxy), ``scores`` and ``pred_classes`` of every image, after NMS."""
        proposals, _ = self.proposals(pyramid)
        pooled = pool_boxes(pyramid, [each.tensor for each in proposals], _BOX_SIZE)
        predictions = tuple(each.float() for each in self.predictor(self.box_head(pooled)))
        boxes = [
            Instances(size, proposal_boxes=each) for size, each in zip(pyramid.image_sizes, proposals, strict=True)
        ]
        found, _ = self.predictor.inference(predictions, boxes)
        return found

    @torch.no_grad()
    def _sample_boxes(self, proposals: Boxes, objects: Instances, generator: torch.Generator | None) -> SampledBoxes:
        """Of the objects themselves, which are proposals too, and the proposed boxes."""
        truth = objects.gt_boxes.tensor.to(proposals.tensor)
        if len(truth) + len(proposals) == 0:  # nothing proposed: the whole image is background
            height, width = objects.image_size
            proposals = Boxes(proposals.tensor.new_tensor([[0, 0, width, height]]))
        assigned = assign_max_iou(
            proposals.tensor, truth, positive_iou=self.positive_iou, negative_iou=self.positive_iou, least_iou=None
        )
        candidates = torch.cat([truth, proposals.tensor])
        assigned = torch.cat([torch.arange(len(truth), device=assigned.device), assigned])
        sampled = self.sample(assigned, generator)
        return SampledBoxes(candidates[sampled.index], assigned[sampled.index], len(sampled.positive))


def pool_boxes(pyramid: HeadPyramid, boxes: Sequence[Tensor], size: int) -> Tensor:
    """RoIAlign: boxes B x (n, 4) absolute xyxy -> (R, D, size, size), from all levels but the last one.

    A box's level is floor(log2(sqrt(area) / (14 strides of the finest level))), counted from that. In float32 also
    under autocast, since the boxes would be rounded to the maps' type.
    """
    strides = pyramid.strides[:-1]
    pooler = ROIPooler(
        output_size=size,
        scales=[1 / stride for stride in strides],
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
        canonical_box_size=_FINEST * strides[0],
        canonical_level=round(math.log2(strides[0])),
    )
    maps = [at_least_float32(each) for each in pyramid.maps[: len(strides)]]
    return pooler(maps, [Boxes(each.to(maps[0].dtype)) for each in boxes])


def _samples(chosen: Sequence[SampledBoxes], pooled: Tensor) -> HeadSamples:
    """Of every image as many boxes as of the one with the fewest; positives come first. Features are the pooled ones,
    averaged over their cells.
    """
    counts = [len(each.boxes) for each in chosen]
    fewest = min(counts)
    features = torch.stack([each[:fewest] for each in pooled.mean(dim=(2, 3)).split(counts)])  # (B, P, D)
    return HeadSamples(
        boxes=torch.stack([each.boxes[:fewest] for each in chosen]).detach(),
        target_index=torch.stack([each.target_index[:fewest] for each in chosen]),
        features_at=lambda index: gather_rows(features, index),
    )


def _labels(chosen: SampledBoxes, objects: Instances, num_classes: int) -> Tensor:
    """(n,) int64, ``num_classes`` where background."""
    classes = F.pad(objects.gt_classes.long(), (0, 1), value=num_classes)  # the last one is that of index -1
    return classes[chosen.target_index]


def _target_boxes(chosen: SampledBoxes, objects: Instances) -> Tensor:
    """(n, 4) absolute xyxy of the objects, the sampled box itself where background."""
    boxes = F.pad(objects.gt_boxes.tensor.to(chosen.boxes), (0, 0, 0, 1))[chosen.target_index]
    return torch.where((chosen.target_index == BACKGROUND)[:, None], chosen.boxes, boxes)
