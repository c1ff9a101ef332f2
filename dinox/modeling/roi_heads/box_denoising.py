"""Noised ground-truth boxes for the box head of a two-stage detector (DN-DETR, section 4.8).

Legend: C noised copies of each object, M objects of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import cat
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dinox.layers import BoxNoiseDraws, CenterShiftAndScale, draw_box_noise
from dinox.structures import cxcywh_to_xyxy, xyxy_to_cxcywh
from dinox.structures.boxes import image_size_as_box
from dinox.utils.ranges import check_range

MIN_SIDE = 1.0
"""In pixels of the model's input. RoIAlign sees nothing in a thinner box, and what it would have to regress, divided by
its own width, has no bound."""


class BoxDenoising:
    """Noised copies of the ground truth, each with the object that it was: nothing is matched.

    Only boxes are noised, as an ROI head has no content to noise; labels stay, for heads that regress per class.

    Args:
        box_noise: the noise of DN-DETR's denoising queries.
        num_groups: noised copies of each object (10 in the paper).
        loss_weight: of the regression loss of a noised box, that of a proposal being 1. The paper names none.
    """

    def __init__(self, *, box_noise: CenterShiftAndScale, num_groups: int = 10, loss_weight: float = 1.0):
        if box_noise.halves != 1:
            raise ValueError(
                f"box_noise: expected CenterShiftAndScale, got {type(box_noise).__name__}, whose negatives have no box "
                "to regress"
            )
        check_range("num_groups", num_groups, 1)
        check_range("loss_weight", loss_weight, 0)
        self.box_noise, self.num_groups, self.loss_weight = box_noise, num_groups, loss_weight

    @classmethod
    def from_yaml(cls, settings: Mapping[str, Any]) -> BoxDenoising:
        """``settings``: MODEL.DINOX.ROI_DENOISING; what it lacks is the paper's."""
        noise = {"CENTER_SHIFT": "center_shift", "SCALE": "scale"}
        own = {"NUM_GROUPS": "num_groups", "LOSS_WEIGHT": "loss_weight"}
        noise, own = ({names[key]: settings[key] for key in names.keys() & settings} for names in (noise, own))
        return cls(box_noise=CenterShiftAndScale(**noise), **own)

    def __call__(self, targets: Sequence[Instances], generator: torch.Generator | None = None) -> list[Instances]:
        """Ground truth (``gt_boxes``, ``gt_classes``) of each image -> its noised boxes as proposals.

        They have ``proposal_boxes``, clipped to the image, and ``gt_boxes`` and ``gt_classes`` of their objects, group
        after group; those that clipping leaves thinner than ``MIN_SIDE`` are left out.
        """
        return [self._noised(objects, generator) for objects in targets]

    def sample_noise(
        self, num_objects: int, *, generator: torch.Generator | None, device: torch.device
    ) -> BoxNoiseDraws:
        """Of one image: (1, C, M, 4). The one place where random numbers are drawn; replace it to inject others."""
        return draw_box_noise((1, self.num_groups, num_objects), generator=generator, device=device)

    @torch.no_grad()
    def _noised(self, objects: Instances, generator: torch.Generator | None) -> Instances:
        boxes = objects.gt_boxes.tensor  # (M, 4)
        image = image_size_as_box(objects.image_size, boxes)
        noise = self.sample_noise(len(boxes), generator=generator, device=boxes.device)
        noised = self.box_noise(xyxy_to_cxcywh(boxes / image)[None, None], noise)  # (1, C, M, 4)
        noised = cxcywh_to_xyxy(noised).flatten(0, 2) * image
        copies = Instances(objects.image_size)
        copies.gt_boxes = Boxes(boxes.repeat(self.num_groups, 1))
        copies.gt_classes = objects.gt_classes.repeat(self.num_groups)
        return at_boxes(noised, copies)


def at_boxes(boxes: Tensor, objects: Instances) -> Instances:
    """Proposals at these boxes (N, 4), absolute xyxy, that are the objects (N) by construction.

    Boxes are clipped to the image; those that are left thinner than ``MIN_SIDE`` are left out.
    """
    clipped = Boxes(boxes)
    clipped.clip(objects.image_size)
    proposals = Instances(objects.image_size)
    proposals.proposal_boxes = clipped
    proposals.gt_boxes, proposals.gt_classes = objects.gt_boxes, objects.gt_classes
    # The object itself may be of no size, which has no logarithm.
    return proposals[clipped.nonempty(MIN_SIDE) & objects.gt_boxes.nonempty()]


def regression_loss(
    predictor: FastRCNNOutputLayers, deltas: Tensor, noised: Sequence[Instances], *, num_proposals: int
) -> Tensor:
    """The predictor's own box loss and weight, of noised boxes towards their objects.

    It is divided by the number of proposals, by which detectron2 divides theirs: so a noised box has the influence of a
    proposal that is matched, however many objects and groups there are.
    """
    boxes, objects = (cat([x.get(name).tensor for x in noised]) for name in ("proposal_boxes", "gt_boxes"))
    mean = predictor.box_reg_loss(boxes, objects, deltas, cat([x.gt_classes for x in noised]))
    weight = predictor.loss_weight.get("loss_box_reg", 1.0)
    return mean * (weight * len(boxes) / max(num_proposals, 1))
