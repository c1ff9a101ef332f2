"""Checkpoint files of ours, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dinox.checkpoint.reading import CheckpointError
from dinox.checkpoint.tensor_files import ENDING, ENTRY, write_safetensors
from dinox.utils.whole_files import written_whole

ENDINGS = (".pth", ENDING)


def check_target(path: str | os.PathLike, *, endings: Sequence[str] = ENDINGS) -> None:
    """Raises CheckpointError if no file can be written there. What is there already: see ``check_outputs``."""
    path = Path(path)
    if path.suffix not in endings:
        raise CheckpointError(f"{path}: expected a name that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a file, this is a folder")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise CheckpointError(f"{path}: expected a file in an existing folder that can be written, got {folder}")


@contextmanager
def writing_errors(path: str | os.PathLike) -> Iterator[None]:
    """What torch, safetensors and numpy raise when a disk is full, as CheckpointError. Around ``written_whole``."""
    try:
        yield
    except (RuntimeError, SafetensorError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be written ({type(error).__name__}: {reason}). Is the disk full? What was there is kept"
        ) from error


def write_checkpoint(
    path: str | os.PathLike, weights: Mapping[str, Tensor], *, description: Mapping[str, Any] | None = None
) -> None:
    """Write a state dict as ``.safetensors``, or as ``.pth`` for ``Checkpointer`` and detectron2's, with a description.

    What is at ``path`` is replaced. Raises CheckpointError if the disk is full or breaks; then it is kept.
    """
    weights = {name: torch.as_tensor(tensor).detach() for name, tensor in weights.items()}
    with writing_errors(path), written_whole(path) as temporary:
        if Path(path).suffix == ENDING:
            write_safetensors(temporary, weights, description)
        else:
            torch.save({"model": weights} | ({} if description is None else {ENTRY: dict(description)}), temporary)
