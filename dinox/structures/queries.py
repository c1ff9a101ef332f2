"""Named query groups: the decoder's queries, who may see them, and how their targets are known.

Legend: B images, N queries of a group, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dinox.structures.auxiliary import HeadSamples
from dinox.structures.memory import Memory
from dinox.structures.targets import Targets, TargetView

ANY_CLASS = -1
MATCHING = "matching"  # the group whose predictions are the detections


@dataclass(frozen=True)
class QueryGroup:
    """One set of queries with its rules.

    name: "matching", "denoising", ...; loss keys and weights derive from it.
    content: (B, N, D) content queries.
    anchors: (B, N, 4) anchor boxes, normalised cxcywh, or (B, N, 2) anchor points; None: queries have no place.
    positions: (B, N, D) positional queries where the decoder does not make them from the anchors.
    sees: names of the *other* groups whose queries this group may attend to.
    subgroup_size: queries attend only within consecutive blocks of this size of their own group; None: all of it.
    padding_mask: (B, N) bool, True = no query at all (nobody attends to it, it predicts nothing); None: none is.
    target_index: (B, N) int64, the target known by construction of every query, -1 = background; None: ask a matcher.
    repeats: how many predictions per object a matcher is to make positive, equally many of each sub-group; losses are
    divided by as many.
    target_view: which of the batch's objects this group learns, and as what; None: all, as they are. ``target_index``
    counts in the view.
    only_class: (B, N) int64, the one class that a query may detect, -1 = any; None: all may detect any.
    batch_positives: how many queries of the whole batch (``Targets.batch``) have an object in ``target_index``, where
    the objects tell; None: these images have to do for an estimate.
    """

    name: str
    content: Tensor
    anchors: Tensor | None = None
    positions: Tensor | None = None
    sees: frozenset[str] = field(default_factory=frozenset)
    subgroup_size: int | None = None
    padding_mask: Tensor | None = None
    target_index: Tensor | None = None
    repeats: int = 1
    target_view: TargetView | None = None
    only_class: Tensor | None = None
    batch_positives: int | None = None

    @property
    def size(self) -> int:
        return self.content.shape[1]

    def subgroup_ids(self, device: torch.device) -> Tensor:
        """(N,) which sub-group every query belongs to."""
        slots = torch.arange(self.size, device=device)
        return torch.zeros_like(slots) if self.subgroup_size is None else slots // max(self.subgroup_size, 1)


@dataclass(frozen=True)
class Proposals:
    """The best-scoring memory tokens of every image as object proposals, in descending order of score.

    features: (B, N, D), detached. anchors: (B, N, 4) normalised cxcywh, detached. padding_mask: (B, N) bool or None.
    logits: (B, P, K) and boxes: (B, P, 4), with gradient, for the encoder's loss: of the same proposals, or of all
    tokens. target_view: see :class:`QueryGroup`.
    """

    features: Tensor
    anchors: Tensor
    logits: Tensor
    boxes: Tensor
    padding_mask: Tensor | None = None
    target_view: TargetView | None = None


@dataclass(frozen=True)
class KnownClasses:
    """Which classes are in every image. labels: (B, C) int64, -1 = any class, for images of which nothing is known.
    valid: (B, C) bool; False where an image has fewer classes than the batch has places."""

    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class QueryContext:
    """All that the maker of a query group may look at.

    memory: None for groups that are made without looking at it. proposals: None without query selection. targets: None
    at inference. generator: of all randomness; None: the images' own (``seeds``), or torch's default one where they
    have none. label_embedding: class labels -> content
    queries, where groups share one. anchor_embedding: anchor boxes (B, N, 4) -> positional queries (B, N, D), likewise.
    known: objects that the user has given at inference; None: nothing is known. known_classes: the classes that the
    user has said are in the images; None: nobody has said any. samples: what every auxiliary head has assigned objects
    to, by the head's name; None: no head was asked, as at inference. image_sizes: B x (height, width) of the images
    without padding, in pixels.
    """

    memory: Memory | None = None
    proposals: Proposals | None = None
    targets: Targets | None = None
    generator: torch.Generator | None = None
    label_embedding: Callable[[Tensor], Tensor] | None = None
    anchor_embedding: Callable[[Tensor], Tensor] | None = None
    known: Targets | None = None
    known_classes: KnownClasses | None = None
    samples: Mapping[str, HeadSamples] | None = None
    image_sizes: Sequence[tuple[int, int]] | None = None

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """Of the images' random numbers."""
        return None if self.targets is None else self.targets.seeds


def build_attention_mask(groups: Sequence[QueryGroup]) -> Tensor | None:
    """The decoder's self-attention mask from the groups' sizes and rules: True = blocked.

    Returns (N, N) for the groups' queries in order, (B, N, N) where some image has padded queries, and None when
    everybody sees everybody. A padded query still sees itself, so that no row is blocked whole (its softmax would
    be NaN).
    """
    device = groups[0].content.device
    rows = []
    for viewer in groups:
        blocks = []
        for seen in groups:
            if seen is viewer:
                ids = viewer.subgroup_ids(device)
                blocks.append(ids[:, None] != ids[None])
            else:
                blocks.append(torch.full((viewer.size, seen.size), seen.name not in viewer.sees, device=device))
        rows.append(torch.cat(blocks, dim=1))
    blocked = torch.cat(rows, dim=0)  # (N, N)
    if all(g.padding_mask is None for g in groups):
        needs_mask = any(g.subgroup_size is not None for g in groups) or len(groups) > 1
        return blocked if needs_mask else None
    padded = torch.cat([_padding_mask(g) for g in groups], dim=1)  # (B, N)
    own_slot = torch.eye(padded.shape[1], dtype=torch.bool, device=device)
    return (blocked | padded[:, None]) & ~own_slot


def _padding_mask(group: QueryGroup) -> Tensor:
    if group.padding_mask is not None:
        return group.padding_mask
    return torch.zeros(group.content.shape[:2], dtype=torch.bool, device=group.content.device)
