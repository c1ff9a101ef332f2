"""Auxiliary heads: detectors on the encoder's memory that only training needs (Co-DETR, section 3.2)."""

from dinox.modeling.auxiliary.atss import ATSSHead
from dinox.modeling.auxiliary.detection import DenseDetections

__all__ = ["ATSSHead", "DenseDetections"]
