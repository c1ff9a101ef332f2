"""Customised positive queries: what auxiliary heads call positive becomes queries of the decoder (Co-DETR, 3.3).

A group of ``PositiveQueries`` for each head. Which object a query is to find is known: there is nothing to match. All
groups go through the decoder in one pass, and the attention mask keeps them apart; the authors' code has a pass for
each.

Legend: B images, P samples of a head per image, N queries, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers import BoxEmbedding, xavier_init
from dinox.modeling.queries.placement import PlacedQueries
from dinox.structures import BACKGROUND, HeadSamples, QueryContext, QueryGroup, inverse_sigmoid, xyxy_to_cxcywh
from dinox.structures.boxes import image_size_as_box
from dinox.utils.gather import gather_rows
from dinox.utils.image_random import draw_uniform
from dinox.utils.numbers import fewer
from dinox.utils.precision import at_least_float32, coordinate_dtype
from dinox.utils.suggest import did_you_mean

FEWEST, MOST = 9, 300  # queries of a group (the authors' code; section 3.3 gives no numbers)
_BORDER = 1e-5  # boxes are embedded as if they began and ended so far inside of the image (the authors' code)
_LEAST_SIDE = 1e-5  # of anchors, as a share of the image: some decoders divide by it


@dataclass(frozen=True)
class Choice:
    """Which samples of a head become queries. index: (B, N) int64 into the samples. filled: (B, N) bool, False = this
    slot holds no query; None: all do."""

    index: Tensor
    filled: Tensor | None = None


class BackgroundPadding:
    """Slots that an image has no positives for are filled with random background samples of the head, which the decoder
    learns to call background; "positive" queries are so in name (the authors' code, their default).
    """

    def __call__(self, choice: Choice, positive: Tensor) -> Choice:
        """positive: (B, N) bool, of the chosen ones."""
        return choice


class ZeroPadding:
    """Slots that an image has no positives for stay empty: masked, and in no loss. All queries are positive, as section
    3.3 has it (the authors' code: an option that no config takes).
    """

    def __call__(self, choice: Choice, positive: Tensor) -> Choice:
        """positive: (B, N) bool, of the chosen ones."""
        return Choice(choice.index, positive if choice.filled is None else choice.filled & positive)


class PositiveQueries(nn.Module):
    """Makes the query group of one auxiliary head in training; there is none at inference.

    Of every image, N = max(fewest, min(most, positives of the fullest image of the batch)) samples become queries:
    positives, a random choice of them where there are more, and then what ``padding`` says.

    Args:
        head: name of the auxiliary head.
        embedding: boxes and features to queries (``EmbeddedPositives``, ``PositiveAnchors``).
        padding: ``BackgroundPadding`` or ``ZeroPadding``.
        most, fewest: bounds of N.

    lambda1 of equation 6 is ``model.criterion.group_weights.<group>``; 1 by default, as in the paper.
    """

    training_only = True

    def __init__(
        self,
        *,
        head: str,
        embedding: nn.Module,
        padding: BackgroundPadding | ZeroPadding,
        most: int = MOST,
        fewest: int = FEWEST,
    ):
        super().__init__()
        if not 1 <= fewest <= most:
            raise ValueError(f"expected 1 <= fewest <= most, got fewest = {fewest} and most = {most}")
        self.head = head
        self.embedding = embedding
        self.padding = padding
        self.most, self.fewest = most, fewest

    def forward(self, context: QueryContext) -> QueryGroup | None:
        if context.samples is None:
            return None
        samples = self._samples_of_head(context)
        choice = self.choose(samples, context)
        empty = None if choice.filled is None else ~choice.filled
        boxes = gather_rows(samples.boxes, choice.index).to(coordinate_dtype(context.memory.tokens))
        boxes = _normalised(boxes, context.image_sizes)
        placed = self.embedding(
            # Nobody sees an empty slot, but what it computes has to be finite: 0 times infinity is not 0.
            boxes if empty is None else torch.where(empty[..., None], 0.5, boxes),
            lambda: _masked(samples.features_at(choice.index), empty),
        )
        target_index = samples.target_index.gather(1, choice.index)
        return QueryGroup(
            f"positive_{self.head}",
            placed.content,
            placed.anchors,
            placed.positions,
            padding_mask=empty,
            target_index=target_index if empty is None else target_index.masked_fill(empty, BACKGROUND),
        )

    @torch.no_grad()
    def choose(self, samples: HeadSamples, context: QueryContext) -> Choice:
        """Positives first, each kind in the order of the samples.

        Anchors in the padding of the batch, which have no size, only fill slots that nothing else is left for; the
        authors' code draws them like any other background.
        """
        positive = samples.target_index != BACKGROUND  # (B, P)
        available = positive.shape[1]
        size = max(self.fewest, min(self.most, int(positive.sum(1).amax())))  # a shape: the host has to know it
        sizeless = (samples.boxes[..., 2:] <= samples.boxes[..., :2]).any(-1)  # in the padding of the batch
        # Positives in [0, 1), background in [1, 2), and in [2, 3) what is only taken where there is nothing else.
        keys = self.sample_keys(positive.shape, context) + (~positive).float() + (~positive & sizeless).float()
        index = keys.topk(fewer(size, available), dim=1, largest=False).indices
        index = index + available * (~positive.gather(1, index))
        index = index.sort(dim=1).values % available
        choice = Choice(index)
        if available < size:  # empty slots at the end
            missing = size - available
            choice = Choice(F.pad(index, (0, missing)), F.pad(torch.ones_like(index, dtype=torch.bool), (0, missing)))
        return self.padding(choice, positive.gather(1, choice.index))

    def sample_keys(self, shape: tuple[int, int], context: QueryContext) -> Tensor:
        """shape: (B, P). Uniform in [0, 1); the lowest are chosen. The one place where this module draws random
        numbers; replace it to inject recorded ones.
        """
        return draw_uniform(
            shape,
            purpose=f"positive queries of {self.head}",
            device=context.memory.tokens.device,
            generator=context.generator,
            seeds=context.seeds,
        )

    def _samples_of_head(self, context: QueryContext) -> HeadSamples:
        if self.head not in context.samples:
            raise ValueError(
                f"positive queries of head {self.head!r}: there is no such auxiliary head, only "
                f"{', '.join(context.samples)}.{did_you_mean(self.head, context.samples)}"
            )
        return context.samples[self.head]


class PositiveFeatures(nn.Module):
    """A head's features at its positives, through a normed linear map: the second term of equation 4."""

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        xavier_init(self.projection)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.norm(self.projection(features))


class HeadEmbedding(nn.Module):
    """A learned vector that tells queries of one head from those of others."""

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(embed_dim))

    def forward(self) -> Tensor:
        """(D,)"""
        return self.weight


class ReleasedHeadEmbedding(HeadEmbedding):
    """A learned number in the vector's place, the same for all channels: what the authors' code comes to."""

    def __init__(self):
        super().__init__(embed_dim=1)


class EmbeddedPositives(nn.Module):
    """For decoders that take positional queries (Deformable DETR and its relatives): from the sine embedding of a box,
    one half of a normed linear map is the positional query and the other the content query, as of
    ``EmbeddedProposals``.

    features: of the head, added to the content (``PositiveFeatures``); None: the box is all that is known.
    head_embedding: added to the positional query (``HeadEmbedding``, ``ReleasedHeadEmbedding``); None: nothing is.
    anchor_dim: 4 if the decoder's anchors are boxes, 2 if they are points.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        features: nn.Module | None,
        head_embedding: nn.Module | None = None,
        anchor_dim: Literal[2, 4] = 4,
    ):
        super().__init__()
        if anchor_dim not in (2, 4):
            raise ValueError(f"anchor_dim must be 2 (points) or 4 (boxes), got {anchor_dim}")
        self.boxes = BoxEmbedding(embed_dim=embed_dim, out_dim=2 * embed_dim)
        self.features = features
        self.head_embedding = head_embedding
        self.anchor_dim = anchor_dim

    def forward(self, boxes: Tensor, features: Callable[[], Tensor]) -> PlacedQueries:
        """boxes: (B, N, 4) normalised cxcywh; features() -> (B, N, D)."""
        positions, content = self.boxes.embed(_inside(boxes)).chunk(2, dim=-1)
        if self.features is not None:
            content = content + self.features(features())
        if self.head_embedding is not None:
            positions = positions + self.head_embedding()
        return PlacedQueries(content, boxes[..., : self.anchor_dim], positions)


class PositiveAnchors(nn.Module):
    """For decoders that make positional queries from anchor boxes (DINO, DAB-DETR): a normed linear map of the box's
    sine embedding is the content query, and the box is the anchor.

    features: as of ``EmbeddedPositives``; None in all of the authors' configs of Co-DINO.
    """

    def __init__(self, *, embed_dim: int, features: nn.Module | None = None):
        super().__init__()
        self.boxes = BoxEmbedding(embed_dim=embed_dim, out_dim=embed_dim)
        self.features = features

    def forward(self, boxes: Tensor, features: Callable[[], Tensor]) -> PlacedQueries:
        """boxes: (B, N, 4) normalised cxcywh; features() -> (B, N, D)."""
        content = self.boxes.embed(_inside(boxes))
        return PlacedQueries(content if self.features is None else content + self.features(features()), boxes)


def _inside(boxes: Tensor) -> Tensor:
    """Boxes that begin and end ``_BORDER`` inside of the image."""
    return inverse_sigmoid(at_least_float32(boxes), _BORDER).sigmoid()


def _normalised(xyxy: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, N, 4) absolute xyxy -> normalised cxcywh, by the sizes of the images without padding."""
    scale = torch.stack([image_size_as_box(size, xyxy) for size in image_sizes])  # (B, 4)
    centers, sides = xyxy_to_cxcywh(xyxy / scale[:, None]).split(2, dim=-1)
    return torch.cat([centers, sides.clamp(min=_LEAST_SIDE)], dim=-1)


def _masked(values: Tensor, empty: Tensor | None) -> Tensor:
    """(B, N, C), 0 where a slot is empty."""
    return values if empty is None else values.masked_fill(empty[..., None], 0.0)
