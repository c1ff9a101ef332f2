"""Label assignment: which prediction learns which object. It lives here and nowhere else."""

from dinox.matching.atss import assign_atss
from dinox.matching.costs import ExactGIoUCost, FocalCost, GIoUCost, L1Cost, SoftmaxCost, focal_cost
from dinox.matching.fcos import assign_fcos
from dinox.matching.hungarian import HungarianMatcher, NonFiniteCosts
from dinox.matching.max_iou import IGNORED, assign_max_iou
from dinox.matching.paa import assign_paa
from dinox.matching.position_modulated import PositionModulatedCost, ReleasedPositionModulatedCost, positional_scores
from dinox.matching.sampling import Sampled, sample_balanced

__all__ = [
    "IGNORED",
    "ExactGIoUCost",
    "FocalCost",
    "GIoUCost",
    "HungarianMatcher",
    "L1Cost",
    "NonFiniteCosts",
    "PositionModulatedCost",
    "ReleasedPositionModulatedCost",
    "Sampled",
    "SoftmaxCost",
    "assign_atss",
    "assign_fcos",
    "assign_max_iou",
    "assign_paa",
    "focal_cost",
    "positional_scores",
    "sample_balanced",
]
