"""One image through a model: its maps, its heads' positives, and its queries.

Legend: L levels, D channels, N queries, (H, W) the image that the model sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinox.analysis.collaboration.attention import Attention, watch_cross_attention
from dinox.analysis.collaboration.discrimination import foreground_mask
from dinox.analysis.collaboration.maps import average_levels, discriminability, grad_cam
from dinox.analysis.collaboration.positives import Places, positives_of
from dinox.analysis.collaboration.scores import positive_score, watch_class_logits
from dinox.modeling.auxiliary.pyramid import level_maps
from dinox.structures import MATCHING, Memory, Targets

DETR = "DETR"
"""What the decoder's own head is called among heads."""


@dataclass(frozen=True)
class ImageCollaboration:
    """foreground: (H, W) bool, the union of foreground_of. encoder: (H, W), the discriminability of the memory.
    attention: (H, W), likewise of the decoder's cross-attention; None without objects, or where it cannot be watched.
    cams: (H, W) by head, those that have positives and whose scores are known. positives: by auxiliary head. queries:
    all of the decoder, by their initial anchors; None where they have none. num_matched: of them. num_objects: M.
    boxes: (M, 4), normalised cxcywh.
    """

    foreground: Tensor
    foreground_of: Literal["boxes", "masks"]
    encoder: Tensor
    attention: Tensor | None
    cams: Mapping[str, Tensor]
    positives: Mapping[str, Places]
    queries: Places | None
    num_matched: int
    num_objects: int
    boxes: Tensor


def prepare(model: nn.Module) -> None:
    """Evaluation mode, but for the auxiliary heads, which assign objects as they do in training."""
    model.eval()
    if model.auxiliary_heads is not None:
        model.auxiliary_heads.train()


def measure_image(model: nn.Module, inputs: dict[str, Any], generator: torch.Generator) -> ImageCollaboration:
    """Encode once, decode and run the auxiliary heads on that memory, and take the gradient of each head's score.

    The scalar behind a head's class activation map is the mean class logit of its positives for their objects' classes;
    for the DETR head, of the queries that its matcher gives objects in the last decoder layer. Gradients are those with
    respect to the encoder's output features. Query groups that training alone has are not made.

    Args:
        model: a ``DetectionTransformer`` with a criterion, as :func:`prepare` leaves it.
        inputs: of one image, with ``instances``.
        generator: on the model's device, of what heads sample.
    """
    targets = model.prepare_targets([inputs])
    with torch.no_grad():
        memory = model.encode(model.preprocess_image([inputs]))
    memory = memory.with_tokens(memory.tokens.detach().requires_grad_())
    size = tuple(inputs["image"].shape[-2:])
    with torch.enable_grad():
        decoded = _Decoded.run(model, memory, targets)
        heads = _run_heads(model, memory, inputs, generator)
        scores = {DETR: positive_score(decoded.logits, decoded.target_index, targets.labels[0])}
        for name, head in heads.items():
            if head.logits is not None:
                scores[name] = positive_score(head.logits, head.target_index, targets.labels[0])
        cams = {name: _cam(score, memory, size) for name, score in scores.items() if score is not None}
    return ImageCollaboration(
        foreground=foreground_mask(inputs["instances"]),
        foreground_of="masks" if inputs["instances"].has("gt_masks") else "boxes",
        encoder=discriminability(_of_image(level_maps(memory)), size).detach(),
        attention=decoded.attention(memory, size),
        cams=cams,
        positives={name: head.positives for name, head in heads.items()},
        queries=decoded.places,
        num_matched=int((decoded.target_index >= 0).sum()),
        num_objects=targets.counts[0],
        boxes=targets.boxes[0, : targets.counts[0]].cpu(),
    )


def _cam(score: Tensor, memory: Memory, size: tuple[int, int]) -> Tensor:
    (gradient,) = torch.autograd.grad(score, memory.tokens, retain_graph=True, materialize_grads=True)
    maps, gradients = level_maps(memory.with_tokens(memory.tokens.detach())), level_maps(memory.with_tokens(gradient))
    return grad_cam(_of_image(maps), _of_image(gradients), size)


def _of_image(maps: list[Tensor]) -> list[Tensor]:
    """L of (1, D, h, w) -> L of (D, h, w)."""
    return [each[0] for each in maps]


# -------------------------------------------------------------------------------------------------------------- decoder


@dataclass(frozen=True)
class _Decoded:
    """Of the last layer: logits (N, K), and target_index (N,), -1 without an object. layers: see ``Attention``."""

    logits: Tensor
    target_index: Tensor
    places: Places | None
    layers: list[Attention]

    @classmethod
    def run(cls, model: nn.Module, memory: Memory, targets: Targets) -> _Decoded:
        with watch_cross_attention(model.decoder) as layers:
            proposals = None if model.query_selection is None else model.query_selection(memory)
            predictions = model.decode(memory, proposals)
        matching = predictions.groups[MATCHING]
        with torch.no_grad():
            (assigned,) = model.criterion.assign([matching], targets)  # (A, 1, N)
        target_index, places = assigned[-1, 0], None
        if predictions.anchors is not None:
            places = Places(predictions.anchors[0, :, :2].detach().float().cpu(), target_index.cpu().long())
        return cls(matching.logits[-1, 0], target_index, places, layers)

    def attention(self, memory: Memory, size: tuple[int, int]) -> Tensor | None:
        """(H, W) in [0, 1]: what matched queries attend to, the mean over layers, made a map as equation 7 does."""
        (matched,) = torch.nonzero(self.target_index >= 0, as_tuple=True)
        if not self.layers or len(matched) == 0:
            return None
        received = torch.stack([layer(matched) for layer in self.layers]).mean(0)  # (S,)
        maps = level_maps(memory.with_tokens(received.detach()[None, :, None]))
        return average_levels([each[0, 0].clamp(min=0) for each in maps], size)


# ------------------------------------------------------------------------------------------------------ auxiliary heads


@dataclass(frozen=True)
class _HeadResult:
    """logits: (P, K or more), None where they are not known. target_index: (P,)."""

    logits: Tensor | None
    target_index: Tensor
    positives: Places


def _run_heads(
    model: nn.Module, memory: Memory, inputs: dict[str, Any], generator: torch.Generator
) -> dict[str, _HeadResult]:
    heads = model.auxiliary_heads
    if heads is None:
        return {}
    size = tuple(inputs["image"].shape[-2:])
    with ExitStack() as watched:
        logits = {name: watched.enter_context(watch_class_logits(heads[name])) for name in heads}
        outputs = heads(memory, [size], [inputs["instances"]], generator)
    results = {}
    for name, output in outputs.items():
        target_index = output.samples.target_index[0]
        fitting = [each[0] for each in logits[name] if each.shape[:2] == (1, len(target_index))]
        results[name] = _HeadResult(
            logits=fitting[0] if len(fitting) == 1 else None,
            target_index=target_index,
            positives=positives_of(output.samples, size),
        )
    return results
