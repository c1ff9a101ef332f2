"""Tensors in, tensors out: what is exported of a detector.

Legend: B images of one size, S memory tokens, N queries, K classes, M detections.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinox.export.description import Place
from dinox.export.postprocess import ranking_part
from dinox.export.samplers import Sampler, attend_by
from dinox.layers import DeformableAttention
from dinox.modeling import drop_training_parts
from dinox.structures import Memory, QueryContext
from dinox.structures.boxes import image_size_as_box

_PROBE_SIDE = 64  # pixels of an image to find out which query groups there are
_SMALL = 0.02


@dataclass(frozen=True)
class Rankings:
    """The choices that the outputs depend on.

    tokens: (B, N) of the query selection, None without one. pairs: (B, M) of the post-processing, flat indices of query
    and class, None where that is outside.
    """

    tokens: Tensor | None = None
    pairs: Tensor | None = None


class TensorDetector(nn.Module):
    """A ``DetectionTransformer`` in evaluation mode as a function of one tensor.

    In: images (B, 3, H, W), all of them of that size. preprocessing "inside": RGB, 0..255, any dtype; "outside": float,
    normalised, channels in the order of the model's ``input_format``.

    Out: postprocessing "outside": logits (B, N, K) and boxes (B, N, 4), normalised cxcywh, of the last decoder layer;
    "inside": boxes (B, M, 4), xyxy in pixels of the input, not clipped to it, scores (B, M) and classes (B, M) int64,
    best first. NMS, which a model may have behind that, is never inside.
    """

    def __init__(self, model: nn.Module, *, preprocessing: Place = "outside", postprocessing: Place = "outside"):
        super().__init__()
        self.model = model.eval()
        self.preprocessing, self.postprocessing = preprocessing, postprocessing

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.detect(self.encode(images), images)

    def encode(self, images: Tensor) -> Memory:
        return self.model.encode_batch(self._normalised(images) if self.preprocessing == "inside" else images)

    def detect(self, memory: Memory, images: Tensor, rankings: Rankings | None = None) -> tuple[Tensor, ...]:
        """``rankings``: another runtime's, to take instead of the own."""
        logits, boxes = self.predict(memory, rankings)
        if self.postprocessing == "outside":
            return logits, boxes
        best = ranking_part(self.model).rank(logits, boxes, rankings and rankings.pairs)
        return best.boxes * image_size_as_box(images.shape[-2:], boxes), best.scores, best.classes

    def predict(self, memory: Memory, rankings: Rankings | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, N, K) and boxes (B, N, 4) before post-processing."""
        selection = self.model.query_selection
        proposals = None if selection is None else selection(memory, rankings and rankings.tokens)
        raw = self.model.decode(memory, proposals).of_matching()
        return raw.logits[-1], raw.boxes[-1]

    def _normalised(self, images: Tensor) -> Tensor:
        images = images.to(self.model.pixel_mean.dtype)
        if self.model.input_format == "BGR":
            images = images.flip(1)
        return (images - self.model.pixel_mean) / self.model.pixel_std


def copy_for_inference(model: nn.Module) -> nn.Module:
    """On the CPU, in evaluation mode, without gradients."""
    criterion, model.criterion = model.criterion, None  # what only training needs is not copied
    try:
        return copy.deepcopy(model).cpu().eval().requires_grad_(False)
    finally:
        model.criterion = criterion


def make_exportable(model: nn.Module, sampler: Sampler) -> nn.Module:
    """A copy for inference that is made of operators that every runtime has, and of nothing that only trains."""
    copied = copy_for_inference(model)
    drop_training_parts(copied)
    if getattr(copied, "auxiliary_heads", None) is not None:
        raise ValueError(
            "only the decoder's detections can be exported, but model.auxiliary_heads.detect_with is "
            f"{copied.auxiliary_heads.detect_with!r}: set it to null"
        )
    for module in copied.modules():
        if isinstance(module, DeformableAttention):
            module.attend = attend_by(sampler)
    _drop_training_groups(copied)
    return copied


@torch.no_grad()
def fill_zeros(model: nn.Module) -> None:
    """Small random numbers for weights that are initialised with zeros, and would hide what is behind them."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=_SMALL)


@torch.no_grad()
def _drop_training_groups(model: nn.Module) -> None:
    """Leave out the makers of query groups that make none at inference, with their weights."""
    memory = model.encode_batch(torch.zeros(1, len(model.pixel_mean), _PROBE_SIDE, _PROBE_SIDE))
    proposals = None if model.query_selection is None else model.query_selection(memory)
    made = {group.name for group in model.query_groups(QueryContext(memory, proposals))}
    for name in set(model.query_groups) - made:
        del model.query_groups[name]


def rank_by_rank(scores: Tensor, ranking: Tensor) -> float:
    """How far a ranking is from being one by these scores: 0 if it is, inf if it names something twice.

    scores: (B, S); ranking: (B, N) indices. The score at every rank is compared with the one that belongs there, so
    that ties, and scores that differ by rounding, may stand in any order, and nothing else may.
    """
    ordered = ranking.sort(1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        return float("inf")
    belongs = scores.topk(ranking.shape[1], dim=1).values
    return float((belongs - scores.gather(1, ranking)).abs().max().nan_to_num(nan=float("inf")))


def count_moved(scores: Tensor, ranking: Tensor) -> int:
    """Ranks at which another runtime has put something else than torch would."""
    return int((scores.topk(ranking.shape[1], dim=1).indices != ranking).sum())
