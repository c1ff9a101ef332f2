"""From a detector to a torch.export program and its file."""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from dinox.export.description import ENTRY, INPUT, FileDescription
from dinox.export.wrapper import TensorDetector
from dinox.structures.memory import Size
from dinox.utils.compat import takes

_SIZE_CHECKS = "prefer_deferred_runtime_asserts_over_guards"
_EXTRA_FILE = f"{ENTRY}.json"
_TRACED_BATCH, _TRACED_CELLS = 2, 5  # more than 1 each: torch.export takes a 1 for a constant
_NAMESPACE = "dinox::"


@torch.no_grad()
def trace(detector: TensorDetector, description: FileDescription) -> ExportedProgram:
    """The program for images of any size and number, as far as the description leaves them free.

    Raises ValueError for a fixed size that the model cannot take.
    """
    coarsest = max(description.strides)
    size = description.size or _traced_size(description)
    description.check_size(*size, path="size")
    images = make_input(description, batch=description.batch or _TRACED_BATCH, size=size)
    free = {}
    if description.batch is None:
        free[0] = Dim("batch", min=1)
    if description.size is None:
        # A level of a single row or column would be a constant.
        free |= {2: Dim("height", min=coarsest + 1), 3: Dim("width", min=coarsest + 1)}
    program = torch.export.export(
        detector, (images,), dynamic_shapes={INPUT: free}, strict=False, **(_size_checks_inside() if free else {})
    )
    _drop_size_checks(program)
    foreign = {str(node.target) for node in program.graph.nodes if str(node.target).startswith((_NAMESPACE, "dinox."))}
    if foreign:
        raise ValueError(
            f"the model calls {', '.join(sorted(foreign))}, which only dinox knows, in a layer that is not a "
            "DeformableAttention: it cannot be exported"
        )
    return program


def _size_checks_inside() -> dict[str, bool]:
    """The setting by which torch writes what it assumes of the sizes into the program.

    Otherwise it stops, for not all of it are ranges of height and width.
    """
    if not takes(torch.export.export, _SIZE_CHECKS):
        raise ValueError(
            f"torch {torch.__version__} can only export for a fixed size and number of images: fix them (--size H W "
            "--batch N), or install torch 2.9 or later"
        )
    return {_SIZE_CHECKS: True}


def _drop_size_checks(program: ExportedProgram) -> None:
    """Leave out what torch noticed about the sizes while it traced.

    Most of it decides nothing: pooling asks whether a division leaves a remainder, and then rounds either way. As
    checks they would refuse every second size. What a file can run on is in its description, and whether something else
    depends on the size shows in the comparison, on sizes that differ in this respect; ONNX has no such checks either.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def make_input(description: FileDescription, *, batch: int, size: Size) -> Tensor:
    """Zeros of the shape and type that the file takes."""
    channels = len(description.pixel_mean)
    return torch.zeros(batch, channels, *size, dtype=getattr(torch, description.input_dtype))


def save_program(program: ExportedProgram, path: str | os.PathLike, description: FileDescription) -> None:
    with open(path, "wb") as file:  # given a name, torch insists on its ending
        torch.export.save(program, file, extra_files={_EXTRA_FILE: description.to_json()})


def load_program(path: str | os.PathLike) -> tuple[ExportedProgram, FileDescription]:
    """Raises ValueError for a file that ``dinox export`` did not write. Only for files that are trusted (see
    ``ProgramDetector``)."""
    extra_files = {_EXTRA_FILE: ""}
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own way to read weights
            program = torch.export.load(file, extra_files=extra_files)
    except OSError:
        raise
    except Exception as error:  # whatever zip, json and torch make of other files
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a readable torch.export program ({type(error).__name__}: {reason})") from error
    text = extra_files[_EXTRA_FILE]
    if not text:
        raise ValueError(
            f"{path}: a torch.export program, but not one that `dinox export` wrote: it has no {_EXTRA_FILE}"
        )
    return program, FileDescription.from_json(text if isinstance(text, str) else text.decode(), path=str(path))


def _traced_size(description: FileDescription) -> Size:
    """Any that the model can take; height and width differ, so that none is taken for the other."""
    side = max(description.strides) * _TRACED_CELLS
    while True:
        size = (side, side + max(description.strides))
        try:
            description.check_size(*size, path="")
        except ValueError:
            side *= 2
        else:
            return size
