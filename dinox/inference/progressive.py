"""Progressive inference: the surest detections become known objects, which help to find the others (DN-DETR, section
5.7.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torchvision.ops import nms

from dinox.modeling import DetectionTransformer
from dinox.modeling.meta_arch.predictions import in_output_frames
from dinox.structures import Targets, cxcywh_to_xyxy, xyxy_to_cxcywh
from dinox.structures.boxes import image_size_as_box


class ProgressiveDetector:
    """A detector that looks several times. Takes and returns what its model does at inference.

    After every round but the last, detections that are sure enough are final and become known objects of the next
    round. The result is those, and what the last round finds beside them. Images are encoded once.

    Args:
        model: in eval mode; one that was trained with known objects, of any class (``SplitAtRandom``): one that only
            knows objects of some classes (``SplitByClass``) has never been told those that it detects.
        score_threshold: of the detections that become known. Above 1 none does, and the result is the model's own.
        rounds: how often the decoder runs at most; it ends when nothing new is sure.
        duplicate_iou: detections are one object if their boxes overlap by more: among those that become known whatever
            their classes, and with a later detection of the same class.
    """

    def __init__(
        self,
        model: DetectionTransformer,
        *,
        score_threshold: float = 0.5,
        rounds: int = 3,
        duplicate_iou: float = 0.7,
    ):
        if not score_threshold >= 0:
            raise ValueError(f"score_threshold: expected a number of at least 0, got {score_threshold!r}")
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"rounds: expected a whole number of at least 1, got {rounds!r}")
        if not 0 <= duplicate_iou <= 1:
            raise ValueError(f"duplicate_iou: expected a number from 0 to 1, got {duplicate_iou!r}")
        self.model = model
        self.score_threshold, self.rounds, self.duplicate_iou = score_threshold, rounds, duplicate_iou

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        model = self.model
        if model.training:
            raise ValueError("progressive inference needs a model in eval mode: call model.eval()")
        if "denoising" not in model.query_groups or model.query_groups.visibility is None:
            raise ValueError(
                "progressive inference needs a model whose matching queries see known objects: one that was trained as "
                "dn_detr/known_objects_at_random_shapes, with model.query_groups.denoising and "
                "model.query_groups.visibility=FullVisibility"
            )
        images, given = model.preprocess_image(batched_inputs), model.prepare_known(batched_inputs)
        memory = model.encode(images)
        proposals = None if model.query_selection is None else model.query_selection(memory)
        sizes = [tuple(image.shape[-2:]) for image in images]
        known, final = given["known"], []  # final: Instances of every image, from the first round on
        told = [_as_instances(given["known"], b, size) for b, size in enumerate(sizes)]
        for rounds_left in reversed(range(self.rounds)):
            predictions = model.decode(memory, proposals, **{**given, "known": known})
            found = model.postprocess(predictions.of_matching(), sizes)
            final = final or [each[:0] for each in found]
            new = [
                self._beside(self._beside(each, kept), user)
                for each, kept, user in zip(found, final, told, strict=True)
            ]
            sure = [self._surest(each) for each in new]
            if rounds_left == 0 or not any(map(len, sure)):
                break
            final = [Instances.cat(pair) for pair in zip(final, sure, strict=True)]
            known = _joined(given["known"], final)
        ranked = [_ranked(kept, rest, len(all_)) for kept, rest, all_ in zip(final, new, found, strict=True)]
        return in_output_frames({"instances": ranked}, batched_inputs)

    def _surest(self, found: Instances) -> Instances:
        sure = found[found.scores >= self.score_threshold]
        return sure[nms(sure.pred_boxes.tensor, sure.scores, self.duplicate_iou)]

    def _beside(self, found: Instances, final: Instances) -> Instances:
        """Detections of other objects than the final ones."""
        if len(final) == 0:
            return found
        same_class = found.pred_classes[:, None] == final.pred_classes[None]
        same_place = pairwise_iou(_clipped(found), _clipped(final)) > self.duplicate_iou
        return found[~(same_class & same_place).any(1)]


def _clipped(found: Instances) -> Boxes:
    boxes = found.pred_boxes.clone()
    boxes.clip(found.image_size)
    return boxes


def _as_instances(given: Targets | None, image: int, size: tuple[int, int]) -> Instances:
    """What the user knows of an image."""
    count = 0 if given is None else given.counts[image]
    if count == 0:
        return Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), pred_classes=torch.zeros(0, dtype=torch.int64))
    boxes = cxcywh_to_xyxy(given.boxes[image, :count])
    boxes = Boxes(boxes * image_size_as_box(size, boxes))
    return Instances(size, pred_boxes=boxes, pred_classes=given.labels[image, :count])


def _joined(given: Targets | None, final: Sequence[Instances]) -> Targets:
    """What the user knows and what was found, as known objects."""
    labels, boxes = [], []
    for b, each in enumerate(final):
        xyxy = _clipped(each).tensor
        classes, cxcywh = each.pred_classes, xyxy_to_cxcywh(xyxy / image_size_as_box(each.image_size, xyxy))
        if given is not None:
            count = given.counts[b]
            classes = torch.cat([given.labels[b, :count], classes])
            cxcywh = torch.cat([given.boxes[b, :count], cxcywh])
        labels.append(classes)
        boxes.append(cxcywh)
    return Targets.from_lists(labels, boxes)


def _ranked(final: Instances, rest: Instances, most: int) -> Instances:
    """Scores descending, as many as a single round gives."""
    if len(final) == 0:
        return rest
    joined = Instances.cat([final, rest])
    return joined[joined.scores.argsort(descending=True, stable=True)][:most]
