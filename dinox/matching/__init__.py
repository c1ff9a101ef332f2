"""Label assignment: which prediction learns which object. It lives here and nowhere else."""

from dinox.matching.costs import FocalCost, GIoUCost, L1Cost, SoftmaxCost, focal_cost
from dinox.matching.hungarian import HungarianMatcher
from dinox.matching.position_modulated import PositionModulatedCost, ReleasedPositionModulatedCost, positional_scores

__all__ = [
    "FocalCost",
    "GIoUCost",
    "HungarianMatcher",
    "L1Cost",
    "PositionModulatedCost",
    "ReleasedPositionModulatedCost",
    "SoftmaxCost",
    "focal_cost",
    "positional_scores",
]
