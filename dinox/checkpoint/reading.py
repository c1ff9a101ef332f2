"""Checkpoint files, read without running what they may hold, and with errors that say what is wrong with them."""

import os
import pickle
import re
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from dinox.utils.suggest import did_you_mean


class CheckpointError(ValueError):
    """A file that is missing, unreadable, unsafe, or not of this model. The message names the file and the cure."""


def local_file(path: str) -> str:
    """The file behind a path or a URL. Raises CheckpointError if there is none."""
    try:
        local = PathManager.get_local_path(path)
    except Exception as error:  # urllib's, iopath's, ... : all mean that it could not be had
        raise CheckpointError(f"checkpoint {path}: cannot be fetched ({type(error).__name__}: {error})") from error
    if not os.path.isfile(local):
        folder = os.path.dirname(local) or "."
        siblings = (
            [os.path.join(os.path.dirname(path), name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
        )
        raise CheckpointError(
            f"checkpoint {path}: no such file.{did_you_mean(path, siblings)} Give an existing file, or a URL "
            "(https://..., detectron2://...)"
        )
    return local


def read_checkpoint(filename: str) -> dict[str, Any]:
    """Unpickle tensors, arrays, numbers, strings and containers; nothing that could run code."""
    try:
        if filename.endswith(".pkl"):
            with open(filename, "rb") as file:
                checkpoint = _TensorUnpickler(file, encoding="latin1").load()
        else:
            checkpoint = torch.load(filename, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"checkpoint {filename}: {error.strerror or error}") from error
    except Exception as error:  # whatever pickle and zip make of truncated files, web pages and the like
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise _unsafe(filename, forbidden[1]) from error
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"checkpoint {filename}: not a readable checkpoint ({type(error).__name__}: {reason}). The file may be "
            "truncated or not be a checkpoint at all; fetch or copy it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"checkpoint {filename}: expected a dictionary of tensors, got {type(checkpoint).__name__}"
        )
    return checkpoint


class _TensorUnpickler(pickle.Unpickler):
    """For detectron2's .pkl files, which are dictionaries of numpy arrays."""

    ALLOWED = {
        "numpy": {"ndarray", "dtype"},
        "numpy.core.multiarray": {"_reconstruct", "scalar"},
        "numpy._core.multiarray": {"_reconstruct", "scalar"},
        "collections": {"OrderedDict"},
        "_codecs": {"encode"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")  # torch.load's words
        return super().find_class(module, name)


def _unsafe(filename: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {filename}: refused, for it holds {name}, which is no tensor, number or plain container and could "
        "run code. If you trust its origin, load it yourself and save its state_dict with torch.save"
    )
