"""ROI heads that also learn to restore noised ground-truth boxes: "DN for Faster R-CNN" (DN-DETR, section 4.8).

The noised boxes go through the box head "in parallel with the original boxes from the RPN" and "directly regress the
GT". Read literally: they have a box loss and no class loss, and they meet no matcher. Proposals, their sampling and
their losses stay detectron2's, and so does all of inference; there are no new parameters. The noised boxes are a batch
of their own, which matters to box heads with batch norm only.

In yaml the names are those of ``MODEL.ROI_HEADS.NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor

from dinox.modeling.roi_heads.box_denoising import BoxDenoising, at_boxes, regression_loss


class _WithDenoising:
    """Goes before a class of detectron2's ROI heads, whose names of parameters have to stay.

    Args:
        denoising: None: nothing is added.
        kwargs: of detectron2's class.
    """

    @configurable
    def __init__(self, *, denoising: BoxDenoising | None, **kwargs):
        super().__init__(**kwargs)
        self.denoising = denoising

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        settings = cfg.MODEL.get("DINOX", {}).get("ROI_DENOISING", {})
        return {**super().from_config(cfg, input_shape), "denoising": BoxDenoising.from_yaml(settings)}

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """detectron2's; in training also the losses of noised boxes. ``generator`` draws their noise."""
        found, losses = super().forward(images, features, proposals, targets)
        if self.training and self.denoising is not None:
            noised = self.denoising(targets, generator)
            box_features = [features[name] for name in self.box_in_features]
            denoising_losses = self._denoise(box_features, noised, sum(map(len, found)))
            losses.update({key: loss * self.denoising.loss_weight for key, loss in denoising_losses.items()})
        return found, losses


@ROI_HEADS_REGISTRY.register()
class DenoisingROIHeads(_WithDenoising, StandardROIHeads):
    """StandardROIHeads, with or without masks and keypoints, and the loss ``loss_box_reg_dn``."""

    def _denoise(self, features: list[Tensor], noised: list[Instances], num_proposals: int) -> dict[str, Tensor]:
        pooled = self.box_pooler(features, [x.proposal_boxes for x in noised])
        _, deltas = self.box_predictor(self.box_head(pooled))
        return {"loss_box_reg_dn": regression_loss(self.box_predictor, deltas, noised, num_proposals=num_proposals)}


@ROI_HEADS_REGISTRY.register()
class DenoisingCascadeROIHeads(_WithDenoising, CascadeROIHeads):
    """CascadeROIHeads, and the losses ``loss_box_reg_dn_stage0``, ...: each stage restores what the last one left.

    The paper has no cascade. All stages have the same objects for the same boxes, where detectron2 matches anew.
    """

    def _denoise(self, features: list[Tensor], noised: list[Instances], num_proposals: int) -> dict[str, Tensor]:
        losses = {}
        for stage, predictor in enumerate(self.box_predictor):
            predictions = self._run_stage(features, noised, stage)
            losses[f"loss_box_reg_dn_stage{stage}"] = regression_loss(
                predictor, predictions[1], noised, num_proposals=num_proposals
            )
            restored = predictor.predict_boxes(predictions, noised)
            noised = [at_boxes(boxes.detach(), objects) for boxes, objects in zip(restored, noised, strict=True)]
        return losses
