"""What the meta-architecture predicts, group by group, and detections in the frames of the output.

Legend: B images, N queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor

from dinox.structures import BEFORE_NMS, MATCHING, HeadOutput, PredictionSet, Proposals, RawPredictions


@dataclass(frozen=True)
class Predictions:
    """One prediction set per query group, in the decoder's order, and the encoder's proposals behind them."""

    groups: dict[str, PredictionSet]
    proposals: Proposals | None
    padding_mask: Tensor | None  # (B, N) of the matching group
    anchors: Tensor | None = None  # (B, N, 4) or (B, N, 2), those that the matching group starts with
    auxiliary: Mapping[str, HeadOutput] | None = None  # by auxiliary head, where they were asked

    def for_losses(self) -> list[PredictionSet]:
        if self.proposals is None:
            return list(self.groups.values())
        encoder = PredictionSet(
            "encoder",
            self.proposals.logits[None],
            self.proposals.boxes[None],
            target_view=self.proposals.target_view,
        )
        return [*self.groups.values(), encoder]

    def auxiliary_losses(self, share: float = 1.0) -> dict[str, Tensor]:
        """Of all auxiliary heads. They are normalised by what the heads find in these images, ``share`` of the whole
        batch: added up over its parts, they are means of theirs, as they are means over ranks."""
        outputs = (self.auxiliary or {}).values()
        return {key: loss * share for output in outputs for key, loss in output.losses.items()}

    def of_matching(self) -> RawPredictions:
        matching, proposals = self.groups[MATCHING], self.proposals
        return RawPredictions(
            logits=matching.logits,
            boxes=matching.boxes,
            encoder_logits=None if proposals is None else proposals.logits,
            encoder_boxes=None if proposals is None else proposals.boxes,
            padding_mask=self.padding_mask,
        )


def detect(
    postprocess: Callable[[RawPredictions, list[tuple[int, int]]], list[Instances]],
    predictions: RawPredictions,
    image_sizes: list[tuple[int, int]],
) -> dict[str, list[Instances]]:
    """Detections of all images, by their keys in the outputs: "instances", and ``BEFORE_NMS`` where there is a
    suppression, so that one pass is enough to evaluate both."""
    if not hasattr(postprocess, "suppress"):
        return {"instances": postprocess(predictions, image_sizes)}
    ranked = postprocess.ranking(predictions, image_sizes)
    return {"instances": [postprocess.suppress(found) for found in ranked], BEFORE_NMS: ranked}


def in_output_frames(
    detections: dict[str, list[Instances]], batched_inputs: list[dict[str, Any]]
) -> list[dict[str, Instances]]:
    """Detections in the frames of the images to those of ``height`` and ``width``, clipped; empty boxes dropped.

    An input's ``content_size`` is what of its image was there before it was padded: the part that they are the size of.
    """
    outputs: list[dict[str, Instances]] = [{} for _ in batched_inputs]
    for key, of_images in detections.items():
        for output, found, x in zip(outputs, of_images, batched_inputs, strict=True):
            height, width = x.get("content_size", found.image_size)
            found = Instances((height, width), **found.get_fields())
            output[key] = detector_postprocess(found, x.get("height", height), x.get("width", width))
    return outputs
