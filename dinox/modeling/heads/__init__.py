"""Heads: from decoder states to classes and boxes."""

from dinox.modeling.heads.prediction_heads import PredictionHeads

__all__ = ["PredictionHeads"]
