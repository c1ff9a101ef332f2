"""Checkpoint files, read without running what they may hold, and with errors that say what is wrong with them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.utils.file_io import Detectron2Handler, PathManager
from torch import Tensor

from dinox.checkpoint import tensor_files
from dinox.utils.compat import allowed_globals, weights_only_is_safe
from dinox.utils.download import DownloadError, fetch, is_web_address, names_digest
from dinox.utils.suggest import did_you_mean

TRUST_VARIABLE = "DINOX_TRUST_CHECKPOINTS"
"""Set to 1 to read .pth files with a torch older than 2.6."""

EMA = "ema"
"""The entry of our files with the averaged weights: a state dict with the names of "model"."""

_ENTRIES = ("model", "state_dict", "blobs")
_EMA_ENTRIES = (EMA, "ema_model", "ema_state", "model_ema")
_WRAPPED = "module."
_SHOWN = 5

_NUMBERS = (Tensor, np.ndarray, np.generic)
"""What may stand for a tensor."""

_INERT = (argparse.Namespace,)
"""What checkpoints of training scripts hold beside tensors and cannot run anything."""


class CheckpointError(ValueError):
    """A file that is missing, unreadable, unsafe, or not of this model. The message names the file and the cure."""


@dataclass(frozen=True)
class LocalFile:
    """verified: whoever gave the address gave the sha256 of its content too, all 64 digits, and this file has it."""

    path: str
    verified: bool = False


def local_file(path: str) -> LocalFile:
    """The file behind a path or a URL, which is fetched if need be. Raises CheckpointError if there is none.

    URLs are ``https://...`` (``https://...#sha256=HEX`` is checked) and detectron2's ``detectron2://...`` and
    ``catalog://...``. Other schemes are those that are registered with detectron2's PathManager.

    detectron2 publishes no digests of its files, such as the backbones under ``detectron2://ImageNetPretrained``: that
    they come over https, from its own server, is all that speaks for them.
    """
    try:
        url = _web_address(path)
        local = PathManager.get_local_path(path) if url is None else fetch(url)
    except DownloadError as error:
        raise CheckpointError(f"checkpoint {'' if str(error).startswith(path) else f'{path}: '}{error}") from error
    except Exception as error:  # of handlers that others registered: all mean that it could not be had
        raise CheckpointError(f"checkpoint {path}: cannot be fetched ({type(error).__name__}: {error})") from error
    if not os.path.isfile(local):
        folder = os.path.dirname(local) or "."
        siblings = (
            [os.path.join(os.path.dirname(path), name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
        )
        kind = "this is a folder" if os.path.isdir(local) else "no such file"
        raise CheckpointError(
            f"checkpoint {path}: {kind}.{did_you_mean(path, siblings)} Give an existing file, or a URL "
            "(https://..., detectron2://...)"
        )
    return LocalFile(local, verified=url is not None and names_digest(url))


def _web_address(path: str) -> str | None:
    """The address that a URL stands for; None: it is a path, or a scheme of its own."""
    if path.startswith(Detectron2Handler.PREFIX):
        return Detectron2Handler.S3_DETECTRON2_PREFIX + path.removeprefix(Detectron2Handler.PREFIX)
    if path.startswith(ModelCatalogHandler.PREFIX):
        return ModelCatalog.get(path.removeprefix(ModelCatalogHandler.PREFIX))
    return path if is_web_address(path) else None


def read_checkpoint(filename: str, *, trusted: bool = False, mapped: bool = False) -> dict[str, Any]:
    """Tensors, arrays, numbers, texts and containers from a file; nothing that could run code.

    Args:
        filename: ``.safetensors`` (gives ``{"model": ...}`` and the description), ``.pkl`` with numpy arrays, or
            anything else that torch.save wrote.
        trusted: the caller knows where the file comes from. It matters for torch older than 2.6 only, which can be
            tricked into running code of a ``.pth`` file.
        mapped: leave the tensors in the file until somebody looks at them: for what stands beside them. The file must
            not change as long as they are used.

    Raises CheckpointError: unreadable, no dictionary, or refused; then the message names what it would have run.
    """
    try:
        with open(filename, "rb"):
            pass  # what can be opened and not be read is broken
    except OSError as error:
        raise CheckpointError(f"checkpoint {filename}: {error.strerror or error}") from error
    try:
        checkpoint = _read(filename, trusted=trusted, mapped=mapped)
    except CheckpointError:
        raise
    except Exception as error:  # whatever pickle and zip make of truncated files, web pages and the like
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise _unsafe(filename, forbidden[1]) from error
        kind = type(error).__name__
        raise CheckpointError(
            f"checkpoint {filename}: not a readable checkpoint ({kind}: {_reason(error)}). The file may be "
            "truncated or not be a checkpoint at all; fetch or copy it again"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"checkpoint {filename}: expected a dictionary of tensors, got {type(checkpoint).__name__}"
        )
    return checkpoint


def _reason(error: Exception) -> str:
    """The first line; of torch.load's the one that says why, without the advice to load the file unsafely."""
    why = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return re.split(r" ?(?:In PyTorch 2\.6|Re-running `torch\.load`)", why.partition("\n")[0])[0]


def _read(filename: str, *, trusted: bool, mapped: bool) -> Any:
    if filename.endswith(".pkl"):
        with open(filename, "rb") as file:
            return _TensorUnpickler(file, encoding="latin1").load()
    if filename.endswith(tensor_files.ENDING):
        return tensor_files.read_safetensors(filename)
    if not (weights_only_is_safe() or trusted or os.environ.get(TRUST_VARIABLE) == "1"):
        raise CheckpointError(
            f"checkpoint {filename}: refused, for torch {torch.__version__} can be tricked into running code of a .pth "
            f"file (CVE-2025-32434). Install torch 2.6 or newer, take a .safetensors file, or set {TRUST_VARIABLE}=1 "
            "if you trust the file's origin"
        )
    with allowed_globals(_INERT):
        # Files of torch before 1.6 are no zip files and cannot be mapped.
        return torch.load(filename, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(filename))


def averaged_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Those of one of our files; None if there are none, or something else has their place, as in RT-DETR's files."""
    model, averages = checkpoint.get("model"), checkpoint.get(EMA)
    if isinstance(model, Mapping) and isinstance(averages, Mapping) and model.keys() == averages.keys():
        return averages
    return None


def pick_weights(checkpoint: Mapping[str, Any], *, path: str, ema: bool | None = None) -> tuple[str, dict[str, Tensor]]:
    """The state dict in what a file holds: the name of its entry ("" for a file that is nothing else), and its tensors.

    Args:
        checkpoint: from ``read_checkpoint``.
        path: for messages.
        ema: take the averaged weights, which must be there, or those of the last step. None: the averaged ones of our
            files, and those of the last step of others, whose published figures are of these.

    A prefix ``module.`` that all names have, of a model wrapped for several GPUs, is left out.

    Raises CheckpointError: no such entry, something else than tensors, NaN or infinity.
    """
    if ema is None:
        ema = averaged_weights(checkpoint) is not None
    if ema:
        entry = next((name for name in _EMA_ENTRIES if name in checkpoint), None)
        if entry is None:
            raise CheckpointError(
                f"checkpoint {path}: holds no averaged weights ({', '.join(_EMA_ENTRIES)}), only "
                f"{', '.join(map(str, list(checkpoint)[:_SHOWN]))}. Leave out --ema"
            )
    else:
        entry = next((name for name in _ENTRIES if isinstance(checkpoint.get(name), Mapping)), "")
    weights = checkpoint[entry] if entry else checkpoint
    if entry == "blobs":  # Caffe2's files of detectors
        weights = {name: value for name, value in weights.items() if isinstance(value, _NUMBERS)}
    check_weights(weights, path)
    if all(name.startswith(_WRAPPED) for name in weights):
        weights = {name.removeprefix(_WRAPPED): value for name, value in weights.items()}
    return entry, {name: torch.as_tensor(value) for name, value in weights.items()}


def check_weights(weights: Any, path: str) -> int:
    """Number of tensors. Raises CheckpointError if there is something else, NaN or infinity among them.

    A tensor is a dense one that holds its values, or an array of numbers; its name is a text.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"checkpoint {path}: expected a dictionary of tensors as 'model', got {type(weights).__name__}"
        )
    if not weights:
        raise CheckpointError(f"checkpoint {path}: holds no tensors at all")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"checkpoint {path}: expected texts as names of tensors, got {name!r} ({type(name).__name__}). This is "
                "no state dict"
            )
        tensor = _dense(name, value, path)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"checkpoint {path}: {name!r} holds NaN or infinity. Take an earlier checkpoint")
    return len(weights)


def _dense(name: str, value: Any, path: str) -> Tensor:
    expected = f"checkpoint {path}: expected a dense tensor of numbers as {name!r}"
    if not isinstance(value, _NUMBERS):
        raise CheckpointError(f"{expected}, got {type(value).__name__}")
    if isinstance(value, Tensor):
        if value.is_meta or value.is_nested or value.is_quantized or value.layout is not torch.strided:
            kind = "without values (on the device 'meta')" if value.is_meta else f"of the layout {value.layout}"
            kind = "that is quantized" if value.is_quantized else "that is nested" if value.is_nested else kind
            raise CheckpointError(f"{expected}, got one {kind}. Save the model's state_dict() as it was trained")
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:  # texts, objects, records, another byte order
        raise CheckpointError(f"{expected}, got an array of {value.dtype}") from error


class _TensorUnpickler(pickle.Unpickler):
    """For detectron2's .pkl files, which are dictionaries of numpy arrays."""

    ALLOWED: Mapping[str, set[str]] = {
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
