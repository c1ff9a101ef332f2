"""Loss parts: each takes matched predictions and returns one sum per prediction set; the criterion weighs and names."""

from dinox.losses.box import ExactGIoULoss, GIoULoss, L1Loss
from dinox.losses.by_group import LossByGroup
from dinox.losses.distribution import distribution_focal_loss
from dinox.losses.federated import FederatedLoss, draw_classes
from dinox.losses.focal import FocalLoss, quality_focal_loss, sigmoid_focal_loss
from dinox.losses.position_supervised import (
    PositionSupervisedLoss,
    QualityFocalLoss,
    exact_matched_iou,
    largest_iou,
    matched_iou,
    position_targets,
    rescale_targets,
)
from dinox.losses.softmax import SoftmaxLoss

__all__ = [
    "ExactGIoULoss",
    "FederatedLoss",
    "FocalLoss",
    "GIoULoss",
    "L1Loss",
    "LossByGroup",
    "PositionSupervisedLoss",
    "QualityFocalLoss",
    "SoftmaxLoss",
    "distribution_focal_loss",
    "draw_classes",
    "exact_matched_iou",
    "largest_iou",
    "matched_iou",
    "position_targets",
    "quality_focal_loss",
    "rescale_targets",
    "sigmoid_focal_loss",
]
