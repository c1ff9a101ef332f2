"""Auxiliary heads: detectors on the encoder's memory that only training needs (Co-DETR, section 3.2)."""

from dinox.modeling.auxiliary.atss import ATSSHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.faster_rcnn import FasterRCNNHead
from dinox.modeling.auxiliary.fcos import FCOSHead
from dinox.modeling.auxiliary.gfl import GFLHead
from dinox.modeling.auxiliary.heads import AuxiliaryHeads
from dinox.modeling.auxiliary.mask_branch import MaskBranch
from dinox.modeling.auxiliary.paa import PAAHead
from dinox.modeling.auxiliary.pyramid import DownsampledPyramid, SingleScalePyramid
from dinox.modeling.auxiliary.region_proposals import RegionProposals
from dinox.modeling.auxiliary.retinanet import RetinaNetHead

__all__ = [
    "ATSSHead",
    "AuxiliaryHeads",
    "DenseDetections",
    "DownsampledPyramid",
    "FCOSHead",
    "FasterRCNNHead",
    "GFLHead",
    "MaskBranch",
    "PAAHead",
    "RegionProposals",
    "RetinaNetHead",
    "SingleScalePyramid",
]
