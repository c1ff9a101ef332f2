"""Weights: reading them with an account of what was loaded, and converting those of other implementations."""

from .conversion import convert
from .loading import Checkpointer, CheckpointError, LoadReport, load_weights

__all__ = ["CheckpointError", "Checkpointer", "LoadReport", "convert", "load_weights"]
