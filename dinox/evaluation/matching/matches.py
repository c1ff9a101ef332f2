"""Which query is matched with which object, image by image, as the model's own matcher decides.

Legend: A decoder layers, N queries, E selected proposals of the encoder, M objects of an image, P matched pairs of the
last layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from dinox.modeling.meta_arch.predictions import Predictions
from dinox.structures import BACKGROUND, MATCHING, PredictionSet


@dataclass(frozen=True)
class ImageMatches:
    """One image's matches of the group "matching", on the CPU.

    name: the image's file, or its id.
    target_index: (A, N) int32, for each decoder layer the index vector V of DN-DETR (equation 1): the object that a
    query is matched with, -1 = none. The measures over training read the last layer; what compares layers has all here.
    anchors: the initial ones, (N, 4) boxes or (N, 2) points; None where queries have none.
    boxes: (M, 4) the objects. Boxes and points are normalised, cxcywh.
    areas: (M,) of the objects' boxes, in pixels of the image file.
    encoder_index: (E,) int32, as ``target_index``, of the encoder's proposals, which come in the order of the queries
    that start from them (with a rest behind, where other groups take these). None where queries do not start from
    proposals, or the encoder's predictions are not of the selected ones, as those of ``ClassAgnosticSelection``.
    """

    name: str
    target_index: Tensor
    anchors: Tensor | None
    boxes: Tensor
    areas: Tensor
    encoder_index: Tensor | None = None

    @property
    def index_vector(self) -> Tensor:
        """(N,) of the last decoder layer."""
        return self.target_index[-1]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(P,) queries and (P,) their objects, in the last decoder layer."""
        queries = (self.index_vector != BACKGROUND).nonzero()[:, 0]
        return queries, self.index_vector[queries].long()


def require_matcher(model: nn.Module, *, origin: str) -> None:
    """Raises ValueError, beginning with ``origin``, for a model whose matches ``match_images`` cannot find."""
    if hasattr(model, "predict") and hasattr(getattr(model, "criterion", None), "assign"):
        return
    raise ValueError(
        f"{origin}: expected a detection transformer with a matcher, such as dinox's DetectionTransformer with its "
        f"criterion, got a {type(model).__name__}: it has no matches to measure"
    )


@torch.no_grad()
def match_images(model: nn.Module, batches: Iterable[list[dict]]) -> list[ImageMatches]:
    """Detect in evaluation mode (no denoising queries), and let the model's matcher assign the objects.

    Args:
        model: a ``DetectionTransformer`` with a criterion; its mode afterwards is that of before.
        batches: of inputs with ``instances``, as in training, and ``height`` and ``width`` of the image files.

    Raises ValueError for ground truth that cannot be right, and where the model predicts NaN.
    """
    found = []
    with inference_context(model):
        for inputs in batches:
            found += _match_batch(model, inputs)
    return found


def _match_batch(model: nn.Module, inputs: list[dict]) -> list[ImageMatches]:
    targets = model.prepare_targets(inputs)
    predictions = model.predict(inputs)
    encoder = _of_selected_proposals(predictions)
    groups = [predictions.groups[MATCHING], *([] if encoder is None else [encoder])]
    assigned = model.criterion.assign(groups, targets)  # (A, B, N), and (1, B, E)
    target_index, *encoder_index = (each.to("cpu", torch.int32) for each in assigned)
    anchors = None if predictions.anchors is None else predictions.anchors.float().cpu()
    boxes = targets.boxes.float().cpu()
    matches = []
    for b, (x, count) in enumerate(zip(inputs, targets.counts, strict=True)):
        own = boxes[b, :count].clone()  # a view would keep, and send to other ranks, the whole batch
        matches.append(
            ImageMatches(
                name=str(x.get("file_name", x.get("image_id", b))),
                target_index=target_index[:, b].clone(),
                anchors=None if anchors is None else anchors[b].clone(),
                boxes=own,
                areas=own[:, 2:].prod(-1) * _pixels_of_file(x),
                encoder_index=encoder_index[0][0, b].clone() if encoder_index else None,
            )
        )
    return matches


def _of_selected_proposals(predictions: Predictions) -> PredictionSet | None:
    """The encoder's predictions, if query n of the matching group starts from the n-th of them and sees the same
    objects."""
    proposals, matching = predictions.proposals, predictions.groups[MATCHING]
    if proposals is None or predictions.anchors is None or proposals.target_view is not matching.target_view:
        return None
    first = proposals.anchors[:, : matching.logits.shape[2]]
    if proposals.logits.shape[:2] != proposals.anchors.shape[:2] or not _equal(predictions.anchors, first):
        return None
    return predictions.for_losses()[-1]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _pixels_of_file(x: dict) -> float:
    """Of the image file, as many as the input has: with its padding, if it was padded."""
    height, width = x["image"].shape[-2:]
    content_height, content_width = x.get("content_size", (height, width))
    return (x["height"] * height / content_height) * (x["width"] * width / content_width)
