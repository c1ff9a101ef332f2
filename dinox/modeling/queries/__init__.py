"""Query groups and what they are made of."""

from dinox.modeling.queries.denoising import (
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenoisingNoise,
    DenoisingQueries,
    DynamicGroups,
    FixedGroups,
    LabelEmbedding,
)
from dinox.modeling.queries.groups import QueryGroups
from dinox.modeling.queries.matching import (
    LearnedAnchors,
    LearnedContent,
    MatchingQueries,
    SelectedAnchors,
    SelectedContent,
)
from dinox.modeling.queries.selection import QuerySelection, proposal_logits

__all__ = [
    "CenterShiftAndScale",
    "ContrastiveBoxNoise",
    "DenoisingNoise",
    "DenoisingQueries",
    "DynamicGroups",
    "FixedGroups",
    "LabelEmbedding",
    "LearnedAnchors",
    "LearnedContent",
    "MatchingQueries",
    "QueryGroups",
    "QuerySelection",
    "SelectedAnchors",
    "SelectedContent",
    "proposal_logits",
]
