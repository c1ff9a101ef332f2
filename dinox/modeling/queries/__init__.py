"""Query groups and what they are made of."""

from dinox.modeling.queries.denoising import (
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenoisingNoise,
    DenoisingQueries,
    DynamicGroups,
    FixedGroups,
    LabelEmbedding,
    SameRangeBoxNoise,
)
from dinox.modeling.queries.groups import (
    FullVisibility,
    QueryGroups,
)
from dinox.modeling.queries.known_labels import KnownLabelQueries
from dinox.modeling.queries.matching import (
    AnchorEmbedding,
    EmbeddedAnchors,
    EmbeddedProposals,
    LearnedAnchors,
    LearnedContent,
    LearnedPoints,
    LearnedPositionedPoints,
    LearnedPositions,
    MatchingQueries,
    PatternContent,
    QueryPlaces,
    RepeatedAnchors,
    SelectedAnchors,
    SelectedContent,
    UnknownLabelContent,
    ZeroContent,
)
from dinox.modeling.queries.placement import (
    AnchorBoxes,
    AnchorPoints,
    EmbeddedBoxes,
    PlacedQueries,
    SummedEmbedding,
)
from dinox.modeling.queries.selection import (
    ClassAgnosticSelection,
    QuerySelection,
    proposal_logits,
)
from dinox.modeling.queries.splits import (
    OneClassPerImage,
    SplitAtRandom,
    SplitByClass,
)
from dinox.modeling.queries.training import TrainingQueries

__all__ = [
    "AnchorBoxes",
    "AnchorEmbedding",
    "AnchorPoints",
    "CenterShiftAndScale",
    "ClassAgnosticSelection",
    "ContrastiveBoxNoise",
    "DenoisingNoise",
    "DenoisingQueries",
    "DynamicGroups",
    "EmbeddedAnchors",
    "EmbeddedBoxes",
    "EmbeddedProposals",
    "FixedGroups",
    "FullVisibility",
    "KnownLabelQueries",
    "LabelEmbedding",
    "LearnedAnchors",
    "LearnedContent",
    "LearnedPoints",
    "LearnedPositionedPoints",
    "LearnedPositions",
    "MatchingQueries",
    "OneClassPerImage",
    "PatternContent",
    "PlacedQueries",
    "QueryGroups",
    "QueryPlaces",
    "QuerySelection",
    "RepeatedAnchors",
    "SameRangeBoxNoise",
    "SelectedAnchors",
    "SelectedContent",
    "SplitAtRandom",
    "SplitByClass",
    "SummedEmbedding",
    "TrainingQueries",
    "UnknownLabelContent",
    "ZeroContent",
    "proposal_logits",
]
