"""Detectors from exported files. Apart from those from checkpoints, which are what files are exported from."""

import os
from pathlib import Path

from dinox.export.runtime import OnnxDetector, ProgramDetector
from dinox.inference.detector import Detector

EXPORTED = {".onnx": OnnxDetector, ".pt2": ProgramDetector}
"""By the ending of the file."""


def load_exported(path: str | os.PathLike, *, device: str | None = None) -> Detector:
    """From a file that ``dinox export`` wrote; on the CPU unless a device is given. Raises ValueError for others."""
    model = EXPORTED[Path(path).suffix.lower()](path, device=device or "cpu")
    return Detector(
        model=model, resize=model.resize, input_format=model.input_format, class_names=tuple(model.class_names)
    )
