"""detectron2's ROI heads with denoising training."""

from dinox.modeling.roi_heads.box_denoising import BoxDenoising
from dinox.modeling.roi_heads.denoising import DenoisingCascadeROIHeads, DenoisingROIHeads

__all__ = ["BoxDenoising", "DenoisingCascadeROIHeads", "DenoisingROIHeads"]
