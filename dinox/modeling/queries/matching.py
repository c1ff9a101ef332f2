"""The matching group: content from one part, anchors (or positional queries) from another.

| detector | content | anchors |
|---|---|---|
| DETR | ``ZeroContent`` | ``LearnedPositions`` |
| Conditional DETR | ``ZeroContent`` | ``LearnedPositionedPoints`` |
| Deformable DETR | ``LearnedContent`` | ``LearnedPositionedPoints`` |
| Anchor DETR | ``PatternContent`` | ``LearnedPoints`` |
| DAB-DETR | ``ZeroContent`` or ``PatternContent`` | ``LearnedAnchors`` |
| DN-DETR | ``UnknownLabelContent`` | ``LearnedAnchors`` |
| static queries, DAB-Deformable-DETR | ``LearnedContent`` | ``LearnedAnchors`` |
| pure query selection | ``SelectedContent`` | ``SelectedAnchors`` |
| mixed (DINO, section 3.4) | ``LearnedContent`` | ``SelectedAnchors`` |
| mixed, of Deformable DETR (H-DETR, Co-DETR) | ``LearnedContent`` | ``EmbeddedAnchors`` of ``SelectedAnchors`` |

The two-stage Deformable DETR makes both of its proposals: ``EmbeddedProposals``.

Legend: B images, N queries, D channels, P patterns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dinox.layers import MLP, BoxEmbedding, xavier_init
from dinox.modeling.queries.denoising import label_embedding_of
from dinox.structures import MATCHING, Proposals, QueryContext, QueryGroup, inverse_sigmoid

ANCHOR_LOGIT_LIMIT = 3.0  # DAB-Deformable-DETR: learned anchors start within sigmoid(+-3)


@dataclass(frozen=True)
class QueryPlaces:
    """Where queries look. anchors: (B, N, 4) normalised cxcywh, (B, N, 2) or None. positions: (B, N, D) positional
    queries that do not come from anchors, or None. padding_mask: (B, N) bool, True = no query, or None."""

    anchors: Tensor | None = None
    positions: Tensor | None = None
    padding_mask: Tensor | None = None

    @property
    def size(self) -> int:
        return (self.positions if self.anchors is None else self.anchors).shape[1]


class ZeroContent(nn.Module):
    """Content queries start at zero: what an object is, is found by looking."""

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, context: QueryContext, size: int) -> Tensor:
        tokens = context.memory.tokens
        return tokens.new_zeros(tokens.shape[0], size, self.embed_dim)


class LearnedContent(nn.Module):
    """The same learned content queries for every image.

    indicator: leave the last channel 0, which says "not a denoising query" where denoising queries say 1. std: of the
    normal distribution that they start with; None: Xavier-uniform, as in DINO's two repositories. num_sets: so many
    times ``num_queries`` of them, a set for each of a group's sub-groups.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        embed_dim: int,
        indicator: bool = False,
        std: float | None = None,
        num_sets: int = 1,
    ):
        super().__init__()
        self.embedding = nn.Embedding(num_sets * num_queries, embed_dim - int(indicator))
        self.indicator, self.num_sets = indicator, num_sets
        if std is None:
            xavier_init(self)
        else:
            nn.init.normal_(self.embedding.weight, std=std)

    def forward(self, context: QueryContext, size: int) -> Tensor:
        # The first of every set, where an image has fewer tokens than queries.
        sets = self.embedding.weight.unflatten(0, (self.num_sets, -1))
        content = sets[:, : size // self.num_sets].flatten(0, 1)
        if self.indicator:
            content = nn.functional.pad(content, (0, 1))
        return content.expand(context.memory.tokens.shape[0], -1, -1)


class UnknownLabelContent(nn.Module):
    """The shared label embedding's row for "no known class", with indicator 0 (DN-DETR, section 4.5)."""

    def forward(self, context: QueryContext, size: int) -> Tensor:
        content = label_embedding_of(self, context).unknown()  # (D,)
        return content.expand(context.memory.tokens.shape[0], size, -1)


class PatternContent(nn.Module):
    """Several content queries for every anchor, all pattern 0 first (Anchor DETR, section 3.3).

    base: content to add, by query; None: the patterns are all of it. Anchors are repeated by ``RepeatedAnchors``.
    """

    def __init__(self, *, num_patterns: int = 3, embed_dim: int, base: nn.Module | None = None):
        super().__init__()
        self.patterns = nn.Embedding(num_patterns, embed_dim)
        self.base = base

    def forward(self, context: QueryContext, size: int) -> Tensor:
        num_patterns = self.patterns.num_embeddings
        if size % num_patterns:
            raise ValueError(
                f"{num_patterns} patterns cannot share {size} queries equally: repeat the anchors as often"
            )
        content = self.patterns.weight.repeat_interleave(size // num_patterns, dim=0)  # (P * N / P, D)
        content = content.expand(context.memory.tokens.shape[0], -1, -1)
        return content if self.base is None else content + self.base(context, size)


class SelectedContent(nn.Module):
    """The features of the selected proposals, without gradient."""

    def forward(self, context: QueryContext, size: int) -> Tensor:
        return _proposals(context).features[:, :size]


class LearnedAnchors(nn.Module):
    """The same learned anchor boxes for every image (DAB-DETR).

    start: "uniform" in the image, within sigmoid(+-3) (DAB-Deformable-DETR), or "normal" logits (DAB-DETR). num_sets:
    so many times ``num_queries`` of them, a set for each of a group's sub-groups.
    """

    def __init__(self, *, num_queries: int, start: Literal["uniform", "normal"] = "uniform", num_sets: int = 1):
        super().__init__()
        if start not in ("uniform", "normal"):
            raise ValueError(f'start must be "uniform" or "normal", got {start!r}')
        size = (num_sets * num_queries, 4)
        uniform = inverse_sigmoid(torch.rand(size)).clamp(-ANCHOR_LOGIT_LIMIT, ANCHOR_LOGIT_LIMIT)
        self.logits = nn.Parameter(uniform if start == "uniform" else torch.randn(size))

    def forward(self, context: QueryContext) -> QueryPlaces:
        return QueryPlaces(self.logits.sigmoid().expand(context.memory.tokens.shape[0], -1, -1))


class LearnedPoints(nn.Module):
    """The same learned anchor points for every image, as shares of it, unbounded (Anchor DETR)."""

    def __init__(self, *, num_queries: int):
        super().__init__()
        self.points = nn.Parameter(torch.rand(num_queries, 2))

    def forward(self, context: QueryContext) -> QueryPlaces:
        return QueryPlaces(self.points.expand(context.memory.tokens.shape[0], -1, -1))


class LearnedPositions(nn.Module):
    """The same learned positional queries for every image, without a place that could be named (DETR)."""

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, embed_dim)

    def forward(self, context: QueryContext) -> QueryPlaces:
        return QueryPlaces(positions=self.embedding.weight.expand(context.memory.tokens.shape[0], -1, -1))


class LearnedPositionedPoints(nn.Module):
    """Learned positional queries, and anchor points that a small network reads from them: one linear layer in
    Deformable DETR, two in Conditional DETR.

    num_sets: so many times ``num_queries`` of them, a set for each of a group's sub-groups.
    """

    def __init__(self, *, num_queries: int, embed_dim: int, num_layers: int = 1, num_sets: int = 1):
        super().__init__()
        self.embedding = nn.Embedding(num_sets * num_queries, embed_dim)
        self.point_head = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=2, num_layers=num_layers)
        xavier_init(self.point_head)
        if num_layers == 1:  # Deformable DETR's code
            nn.init.xavier_normal_(self.point_head.layers[0].weight)
            nn.init.zeros_(self.point_head.layers[0].bias)

    def forward(self, context: QueryContext) -> QueryPlaces:
        positions = self.embedding.weight.expand(context.memory.tokens.shape[0], -1, -1)
        return QueryPlaces(self.point_head(positions).sigmoid(), positions)


class SelectedAnchors(nn.Module):
    """The boxes of the selected proposals, without gradient, by rank of score.

    first: the rank, counted from 0, of the first of them, where better ones belong to another query group. Where an
    image has fewer tokens than that, there are fewer queries, or none.
    """

    def __init__(self, *, num_queries: int, first: int = 0):
        super().__init__()
        self.num_queries, self.first = num_queries, first

    def forward(self, context: QueryContext) -> QueryPlaces:
        proposals = _proposals(context)
        end, available = self.first + self.num_queries, proposals.anchors.shape[1]
        if available < min(end, max(context.memory.token_counts)):
            raise ValueError(
                f"{end} queries need as many proposals, but query_selection gives {available}: set its num_proposals "
                "to at least model.num_queries, and more_in_training to the number of other queries"
            )
        ranks, padding = slice(self.first, end), proposals.padding_mask
        return QueryPlaces(proposals.anchors[:, ranks], padding_mask=None if padding is None else padding[:, ranks])


class EmbeddedAnchors(nn.Module):
    """Anchor boxes with positional queries from the embedding that all query groups share, for decoders that take given
    ones: mixed query selection of Deformable DETR, where content is learned (H-DETR).
    """

    def __init__(self, *, anchors: nn.Module):
        super().__init__()
        self.anchors = anchors

    def forward(self, context: QueryContext) -> QueryPlaces:
        if context.anchor_embedding is None:
            raise ValueError(
                "EmbeddedAnchors needs an embedding of anchor boxes: set model.query_groups.anchor_embedding to an "
                "AnchorEmbedding"
            )
        places = self.anchors(context)
        return dataclasses.replace(places, positions=context.anchor_embedding(places.anchors))


class AnchorEmbedding(BoxEmbedding):
    """Anchor boxes -> positional queries: one half of a normed linear map of their sine embedding.

    The other half would be the content queries where those are not learned (``EmbeddedProposals``); it takes part in
    the norm, as in H-DETR's and Co-DETR's code.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__(embed_dim=embed_dim, out_dim=2 * embed_dim)

    def forward(self, anchors: Tensor) -> Tensor:
        """(B, N, 4) normalised cxcywh -> (B, N, D)."""
        return self.embed(anchors).chunk(2, dim=-1)[0]


class RepeatedAnchors(nn.Module):
    """``times`` queries for each place, the whole list again and again: one for each pattern."""

    def __init__(self, *, anchors: nn.Module, times: int = 3):
        super().__init__()
        self.anchors = anchors
        self.times = times

    def forward(self, context: QueryContext) -> QueryPlaces:
        places = self.anchors(context)
        fields = {field.name: getattr(places, field.name) for field in dataclasses.fields(places)}
        repeated = {name: torch.cat([each] * self.times, dim=1) for name, each in fields.items() if each is not None}
        return QueryPlaces(**repeated)


class MatchingQueries(nn.Module):
    """The queries whose predictions are matched to objects in training, and are the detections at inference.

    known_labels: rewrites the group where the classes in an image are known (``KnownLabelQueries``); None: nobody knows
    them.
    """

    def __init__(
        self,
        *,
        content: nn.Module,
        anchors: nn.Module,
        known_labels: Callable[[QueryGroup, QueryContext], QueryGroup] | None = None,
    ):
        super().__init__()
        self.content = content
        self.anchors = anchors
        self.known_labels = known_labels

    def forward(self, context: QueryContext) -> QueryGroup:
        places = self.anchors(context)
        content = self.content(context, places.size)
        group = QueryGroup(
            MATCHING, content, places.anchors, positions=places.positions, padding_mask=places.padding_mask
        )
        return group if self.known_labels is None else self.known_labels(group, context)


class EmbeddedProposals(BoxEmbedding):
    """Matching queries of the two-stage Deformable DETR: from the sine embedding of every selected box, one half of a
    normed linear map is the positional query and the other the content query.
    """

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__(embed_dim=embed_dim, out_dim=2 * embed_dim)
        self.anchors = SelectedAnchors(num_queries=num_queries)

    def forward(self, context: QueryContext) -> QueryGroup:
        places = self.anchors(context)
        positions, content = self.embed(places.anchors).chunk(2, dim=-1)
        return QueryGroup(MATCHING, content, places.anchors, positions, padding_mask=places.padding_mask)


def _proposals(context: QueryContext) -> Proposals:
    if context.proposals is None:
        raise ValueError(
            "selected queries need proposals, but model.query_selection is None: set a QuerySelection there"
        )
    return context.proposals
