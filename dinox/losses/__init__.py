"""Loss parts: each takes matched predictions and returns one sum per prediction set; the criterion weighs and names."""

from dinox.losses.box import GIoULoss, L1Loss
from dinox.losses.focal import FocalLoss, quality_focal_loss, sigmoid_focal_loss
from dinox.losses.softmax import SoftmaxLoss

__all__ = ["FocalLoss", "GIoULoss", "L1Loss", "SoftmaxLoss", "quality_focal_loss", "sigmoid_focal_loss"]
