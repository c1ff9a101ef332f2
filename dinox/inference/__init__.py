"""Detections from images, folders and videos: in Python, and for the command line."""

from dinox.inference.augmented import AugmentedDetector, View, make_views
from dinox.inference.fusion import NMSFusion, OneToOneEnsemble
from dinox.inference.predictor import Predictor
from dinox.inference.progressive import ProgressiveDetector
from dinox.inference.supervision import to_supervision

__all__ = [
    "AugmentedDetector",
    "NMSFusion",
    "OneToOneEnsemble",
    "Predictor",
    "ProgressiveDetector",
    "View",
    "make_views",
    "to_supervision",
]
