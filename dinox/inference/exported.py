"""Detectors from exported files. Apart from those from checkpoints, which are what files are exported from."""

import os
from pathlib import Path

from dinox.export.runtime import OnnxDetector, ProgramDetector
from dinox.inference.detector import Detector

EXPORTED = {".onnx": OnnxDetector, ".pt2": ProgramDetector}
"""By the ending of the file."""


_PROGRAM = ".pt2"


def load_exported(path: str | os.PathLike, *, device: str | None = None, trust_program: bool = False) -> Detector:
    """From a file that ``dinox export`` wrote; on the CPU unless a device is given. Raises ValueError for others.

    trust_program: read a ``.pt2``, parts of which torch unpickles, so that loading one can run code.
    """
    ending = Path(path).suffix.lower()
    if ending == _PROGRAM and not trust_program:
        raise ValueError(
            f"{path}: a torch.export program can run code when it is loaded. If you trust its origin, say so with "
            "trust_program=True (on the command line: --trust-program); an .onnx file needs no trust"
        )
    model = EXPORTED[ending](path, device=device or "cpu")
    return Detector(
        model=model, resize=model.resize, input_format=model.input_format, class_names=tuple(model.class_names)
    )
