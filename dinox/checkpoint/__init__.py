"""Weights: reading them with an account of what was loaded, and converting those of other implementations."""

from dinox.checkpoint.conversion import ConversionReport, convert, convert_file
from dinox.checkpoint.description import CheckpointDescription, describe, read_description
from dinox.checkpoint.loading import Checkpointer, CheckpointError, load_weights
from dinox.checkpoint.report import LoadReport, ModuleCount

__all__ = [
    "CheckpointDescription",
    "CheckpointError",
    "Checkpointer",
    "ConversionReport",
    "LoadReport",
    "ModuleCount",
    "convert",
    "convert_file",
    "describe",
    "load_weights",
    "read_description",
]
