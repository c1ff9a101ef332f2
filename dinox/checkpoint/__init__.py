"""Weights: reading them with an account of what was loaded, and converting those of other implementations."""

from dinox.checkpoint.conversion import convert
from dinox.checkpoint.loading import Checkpointer, CheckpointError, LoadReport, load_weights

__all__ = ["CheckpointError", "Checkpointer", "LoadReport", "convert", "load_weights"]
