"""Checkpoints as safetensors files: tensors under names, and nothing that could run code.

Such a file holds the weights of one model. What a ``.pth`` file has beside them and is made of texts, lists and
dictionaries (the description, see ``dinox.checkpoint.describe``) is json in the file's metadata. A tensor that has
several names is stored once; metadata say which names are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ENDING = ".safetensors"

ENTRY = "dinox"
"""The key of the description: beside "model" in a checkpoint, and in the metadata here."""

_ALIASES = "dinox.aliases"


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """``{"model": state dict}`` and the description, if there is one. Raises safetensors' errors and ValueError."""
    with safe_open(str(path), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    for name, stored in json.loads(metadata.get(_ALIASES, "{}")).items():
        weights[name] = weights[stored]
    checkpoint: dict[str, Any] = {"model": weights}
    if ENTRY in metadata:
        checkpoint[ENTRY] = json.loads(metadata[ENTRY])
    return checkpoint


def write_safetensors(
    path: str | os.PathLike, weights: Mapping[str, Tensor], description: Mapping[str, Any] | None = None
) -> None:
    """Write a state dict and what is said about it."""
    stored, aliases = _split_aliases(weights)
    metadata = {"format": "pt", _ALIASES: json.dumps(aliases)}
    if description is not None:
        metadata[ENTRY] = json.dumps(description)
    save_file(stored, str(path), metadata=metadata)


def _split_aliases(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that differ, each on its own memory, and the names that are second ones of these."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in weights.items():
        tensor = torch.as_tensor(tensor).detach()
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = seen.setdefault(place, name) if tensor.numel() else name
        if first == name:
            stored[name] = tensor.clone(memory_format=torch.contiguous_format)
        else:
            aliases[name] = first
    return stored, aliases
