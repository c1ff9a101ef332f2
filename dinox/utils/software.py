"""Packages and their versions, what detectron2 lacks, which optional packages are there, and risky settings."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from dinox.utils.compat import api_differences, detectron2_folder
from dinox.utils.environment_report import Problem, Section

OPTIONAL = {
    "timm": ("timm", "more backbones"),
    "onnx": ("onnx", "dinox export as ONNX"),
    "onnxscript": ("onnxscript", "dinox export as ONNX"),
    "onnxruntime": ("onnxruntime", "running and checking exported models"),
    "av": ("av", "dinox predict on videos"),
    "tensorboard": ("tensorboard", "curves of training runs in a browser"),
    "lvis": ("lvis", "evaluation on LVIS"),
    "faster-coco-eval": ("faster-coco-eval", "COCO evaluation some four times faster, where it is set up"),
    "supervision": ("supervision", "to_supervision() of results"),
}
"""Distribution -> (what to install, what it is for)."""

_BROKEN = {("pycocotools", "2.0.9"), ("pycocotools", "2.0.10")}
"""Releases that cannot evaluate on a json without "info"."""

_OFF = ("", "0")


def software_section() -> Section:
    section = Section("software")
    section.facts.append(("Python", f"{platform.python_version()} ({sys.executable})"))
    section.facts.append(("dinox", f"{_version('dinox') or 'not installed'} ({Path(__file__).parents[2]})"))
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
    section.facts.append(("torch", f"{torch.__version__}, {cuda}"))
    section.facts.append(("torchvision", _version("torchvision") or "not installed"))
    folder = detectron2_folder()
    version = _version("detectron2") or "of unknown version"
    section.facts.append(("detectron2", "not installed" if folder is None else f"{version} ({folder})"))
    for name in ("numpy", "pillow", "pycocotools", "fvcore", "omegaconf"):
        version = _version(name)
        section.facts.append((name, version or "not installed"))
        if version is None:
            section.problems.append(Problem(f"{name} is not installed", f"pip install {name}"))
        elif (name, version) in _BROKEN:
            section.problems.append(
                Problem(f"{name} {version} cannot evaluate on every json", f"pip install '{name}!={version}'")
            )
    fault = _torchvision_fault()
    if fault:
        section.problems.append(
            Problem(f"torchvision does not work with this torch ({fault})", "install the torchvision of this torch")
        )
    return section


def differences_section() -> Section:
    """What newer versions of detectron2 have and this one has not, and what dinox does instead."""
    missing = [(found.topic, found.bridge) for found in api_differences() if not found.present]
    return Section("what this detectron2 lacks, and what dinox does instead", missing)


def _torchvision_fault() -> str | None:
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # operators that are missing, libraries that do not load, ...
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def optional_section() -> Section:
    section = Section("optional packages")
    for name, (package, purpose) in OPTIONAL.items():
        version = _version(name)
        section.facts.append((name, f"{version}: {purpose}" if version else f"- pip install {package}: {purpose}"))
    return section


def settings_section(environ: Mapping[str, str] = os.environ) -> Section:
    """Environment variables that change what dinox does."""
    section = Section("environment variables")
    for name in sorted(environ):
        if name.startswith("DINOX_") or name in ("DETECTRON2_DATASETS", "FVCORE_CACHE", "OMP_NUM_THREADS"):
            section.facts.append((name, environ[name]))
    unsafe = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if environ.get(unsafe, "") not in _OFF:
        section.facts.append((unsafe, environ[unsafe]))
        section.problems.append(
            Problem(f"{unsafe} is set: torch.load runs the code that a checkpoint may hold", f"unset {unsafe}")
        )
    return section


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
