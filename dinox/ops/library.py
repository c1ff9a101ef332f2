"""Finds and loads the compiled extension (``dinox/_C*.so``), and defines the operators without it where there is none.

Either way ``torch.ops.dinox.*`` exists afterwards with one schema, so callers have one path. Kernels of the extension
serve the devices it was built for; the reference (dinox/ops/reference.py) serves every other device, and says so once.

Environment: DINOX_DISABLE_EXTENSION=1 leaves the extension alone.
"""

import functools
import importlib.machinery
import logging
import os
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

NAMESPACE = "dinox"
PACKAGE_FOLDER = Path(__file__).resolve().parents[1]

# The twin of the definitions in csrc/ms_deform_attn.cpp.
SCHEMAS = {
    "ms_deform_attn": (
        "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
        "-> Tensor"
    ),
    "ms_deform_attn_backward": (
        "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor sampling_locations, "
        "Tensor attention_weights, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    ),
    "ms_deform_attn_fused": (
        "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
        "Tensor attention_logits) -> Tensor"
    ),
    "ms_deform_attn_fused_backward": (
        "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
        "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, bool[4] output_mask) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
}


@functools.cache
def load_extension() -> tuple[Path | None, str]:
    """Loads the extension on the first call. Returns its path and "", or None and why there is none."""
    if os.environ.get("DINOX_DISABLE_EXTENSION", "0") not in ("", "0"):
        return None, "the extension is disabled by DINOX_DISABLE_EXTENSION"
    candidates = _extension_files()
    if not candidates:
        return None, f"no compiled extension (_C*.so) in {PACKAGE_FOLDER}"
    reasons = []
    for path in candidates:
        try:
            torch.ops.load_library(path)
            return path, ""
        except OSError as error:  # built for another torch, another C++ library, ...
            reasons.append(f"the extension {path.name} does not load ({error})")
    return None, "; ".join(reasons)


def _extension_files() -> list[Path]:
    """Built files, those named for this Python first. Others work as well: the library does not use Python's C API."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    files = sorted(PACKAGE_FOLDER.glob("_C*.so"))
    return sorted(files, key=lambda path: path.name.removeprefix("_C") not in suffixes)


@functools.cache
def operators() -> torch.library.Library:
    """The handle for registering implementations, once the operators are defined (by the extension, else here)."""
    path, _ = load_extension()
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if path is None:
            library.define(schema)
            continue
        built = str(getattr(getattr(torch.ops, NAMESPACE), name).default._schema)
        if built != f"{NAMESPACE}::{schema}":
            raise ImportError(
                f"{path} was built from another version of dinox: expected the operator {schema}, got {built}. "
                "Build it again with `make setup`, or set DINOX_DISABLE_EXTENSION=1."
            )
    return library


def backend(device: torch.device | str) -> str:
    """Which implementation of the operators runs on a device: "extension" (compiled) or "reference" (PyTorch)."""
    return "reference" if why_reference(device) else "extension"


def why_reference(device: torch.device | str) -> str:
    """Why the reference runs on a device, or "" where the extension does."""
    path, reason = load_extension()
    if path is None:
        return reason
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(torch.device(device).type)
    if key and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::ms_deform_attn", key):
        return ""
    return f"the extension {path.name} was built without kernels for {torch.device(device).type}"


@functools.cache
def log_reference(device_type: str) -> None:
    """One line, the first time the reference runs on a type of device."""
    cures = {
        "cpu": "install a C++ compiler and run `make setup`",
        "cuda": "install the CUDA toolkit (nvcc) of torch's CUDA version and run `make setup`",
    }
    logger.warning(
        "ms_deform_attn on %s runs as the PyTorch reference, many times slower than a compiled kernel: %s. "
        "For the kernel: %s.",
        device_type,
        why_reference(device_type),
        cures.get(device_type, "there is none for this device; use cpu or cuda"),
    )
