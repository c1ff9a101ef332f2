"""How stable a detector's matching is, and how far its anchors are from what they are matched with.

The measures of DN-DETR (section 3), DINO (section 3.3) and Stable-DINO (section 2.4.3), all from one representation:
:class:`ImageMatches`.
"""

from dinox.evaluation.matching.images import GroundTruthImages
from dinox.evaluation.matching.matches import ImageMatches, match_images, require_matcher
from dinox.evaluation.matching.metrics import (
    SMALL_AREA,
    MatchingMetrics,
    anchor_target_distances,
    average_top_k_distance,
    instability,
    matched_distances,
    matched_queries,
    matching_metrics,
    unstable_scores,
)

__all__ = [
    "SMALL_AREA",
    "GroundTruthImages",
    "ImageMatches",
    "MatchingMetrics",
    "anchor_target_distances",
    "average_top_k_distance",
    "instability",
    "match_images",
    "matched_distances",
    "matched_queries",
    "matching_metrics",
    "require_matcher",
    "unstable_scores",
]
