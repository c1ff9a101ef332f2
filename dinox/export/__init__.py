"""Detectors as ONNX files and torch.export programs, compared with the model they come from."""

from dinox.export.description import FileDescription
from dinox.export.exporting import ExportReport, ParityError, export_onnx, export_program
from dinox.export.extras import MissingExtra
from dinox.export.parity import Case, Comparison
from dinox.export.runtime import ExportedDetector, OnnxDetector, ProgramDetector
from dinox.export.samplers import gather_sampler, grid_sampler
from dinox.export.settings import ExportSettings
from dinox.export.wrapper import TensorDetector

__all__ = [
    "Case",
    "Comparison",
    "ExportReport",
    "ExportSettings",
    "ExportedDetector",
    "FileDescription",
    "MissingExtra",
    "OnnxDetector",
    "ParityError",
    "ProgramDetector",
    "TensorDetector",
    "export_onnx",
    "export_program",
    "gather_sampler",
    "grid_sampler",
]
