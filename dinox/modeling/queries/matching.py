"""The matching group: content from one part, anchor boxes from another.

| selection | content | anchors |
|---|---|---|
| static | ``LearnedContent`` | ``LearnedAnchors`` |
| pure   | ``SelectedContent`` | ``SelectedAnchors`` |
| mixed (DINO, section 3.4) | ``LearnedContent`` | ``SelectedAnchors`` |

Legend: B images, N queries, D channels.
"""

import torch
from torch import Tensor, nn

from dinox.layers import xavier_init
from dinox.structures import MATCHING, Proposals, QueryContext, QueryGroup, inverse_sigmoid

ANCHOR_LOGIT_LIMIT = 3.0  # DAB-Deformable-DETR: learned anchors start within sigmoid(+-3)


class LearnedContent(nn.Module):
    """The same learned content queries for every image.

    ``indicator``: leave the last channel 0, which says "not a denoising query" where denoising queries say 1.
    """

    def __init__(self, *, num_queries: int, embed_dim: int, indicator: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, embed_dim - int(indicator))
        self.indicator = indicator
        xavier_init(self)

    def forward(self, context: QueryContext, size: int) -> Tensor:
        content = self.embedding.weight[:size]
        if self.indicator:
            content = nn.functional.pad(content, (0, 1))
        return content.expand(context.memory.tokens.shape[0], -1, -1)


class SelectedContent(nn.Module):
    """The features of the selected proposals, without gradient."""

    def forward(self, context: QueryContext, size: int) -> Tensor:
        return _proposals(context).features[:, :size]


class LearnedAnchors(nn.Module):
    """The same learned anchor boxes for every image (DAB-DETR)."""

    def __init__(self, *, num_queries: int):
        super().__init__()
        logits = inverse_sigmoid(torch.rand(num_queries, 4))
        self.logits = nn.Parameter(logits.clamp(-ANCHOR_LOGIT_LIMIT, ANCHOR_LOGIT_LIMIT))

    def forward(self, context: QueryContext) -> tuple[Tensor, None]:
        """Returns anchors (B, N, 4) normalised cxcywh, and no padding."""
        return self.logits.sigmoid().expand(context.memory.tokens.shape[0], -1, -1), None


class SelectedAnchors(nn.Module):
    """The boxes of the selected proposals, without gradient, by rank of score."""

    def __init__(self, *, num_queries: int):
        super().__init__()
        self.num_queries = num_queries

    def forward(self, context: QueryContext) -> tuple[Tensor, Tensor | None]:
        """Returns anchors (B, N, 4) normalised cxcywh, and which are padding (B, N) or None."""
        proposals = _proposals(context)
        available = proposals.anchors.shape[1]
        if available < min(self.num_queries, max(context.memory.token_counts)):
            raise ValueError(
                f"{self.num_queries} queries need as many proposals, but query_selection gives {available}: set its "
                "num_proposals to at least model.num_queries"
            )
        padding = proposals.padding_mask
        return proposals.anchors[:, : self.num_queries], None if padding is None else padding[:, : self.num_queries]


class MatchingQueries(nn.Module):
    """The queries whose predictions are matched to objects in training, and are the detections at inference."""

    def __init__(self, *, content: nn.Module, anchors: nn.Module):
        super().__init__()
        self.content = content
        self.anchors = anchors

    def forward(self, context: QueryContext) -> QueryGroup:
        anchors, padding_mask = self.anchors(context)
        content = self.content(context, anchors.shape[1])
        return QueryGroup(MATCHING, content, anchors, padding_mask=padding_mask)


def _proposals(context: QueryContext) -> Proposals:
    if context.proposals is None:
        raise ValueError(
            "selected queries need proposals, but model.query_selection is None: set a QuerySelection there"
        )
    return context.proposals
