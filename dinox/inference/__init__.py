"""Detections from images, folders and videos: in Python, and for the command line."""

from dinox.inference.predictor import Predictor
from dinox.inference.progressive import ProgressiveDetector
from dinox.inference.supervision import to_supervision

__all__ = ["Predictor", "ProgressiveDetector", "to_supervision"]
