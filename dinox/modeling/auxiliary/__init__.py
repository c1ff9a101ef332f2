"""Auxiliary heads: detectors on the encoder's memory that only training needs (Co-DETR, section 3.2)."""

from dinox.modeling.auxiliary.atss import ATSSHead
from dinox.modeling.auxiliary.detection import DenseDetections
from dinox.modeling.auxiliary.fcos import FCOSHead
from dinox.modeling.auxiliary.gfl import GFLHead
from dinox.modeling.auxiliary.paa import PAAHead
from dinox.modeling.auxiliary.retinanet import RetinaNetHead

__all__ = ["ATSSHead", "DenseDetections", "FCOSHead", "GFLHead", "PAAHead", "RetinaNetHead"]
