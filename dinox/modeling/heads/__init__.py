"""Heads: from decoder states to classes and boxes."""

from dinox.modeling.heads.prediction_heads import PredictionHeads, SoftmaxHeads

__all__ = ["PredictionHeads", "SoftmaxHeads"]
