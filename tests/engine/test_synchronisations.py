"""Where a training step waits for its device.

There is no GPU here, so that a mode stands in for it: results of operators on the model's tensors, and whatever is made
from them, count as the device's, and reading one of them on the host is a wait, as it is on a GPU. On a GPU itself,
torch reports them.
"""

import traceback
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dinox.matching.hungarian as hungarian
from dinox.engine.optimizer import ClippedAdamW
from dinox.engine.trainer import Trainer
from tests.small_models import DINO, build_small, make_input

CONFIGS = [DINO, "stable_dino/stable_dino_r50_4scale_12ep", "dn_detr/dn_detr_r50_50ep"]
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Device:
    """Which tensors are the device's, and from where they were read."""

    def __init__(self, model: torch.nn.Module):
        self._storages: dict[int, weakref.ref] = {}
        self.reads: list[str] = []
        self.add([*model.parameters(), *model.buffers()])

    def add(self, tensors) -> None:
        for tensor in tensors:
            self._storages[tensor.untyped_storage().data_ptr()] = weakref.ref(tensor)

    def has(self, tensors) -> bool:
        return any(tensor.requires_grad or self._of(tensor) for tensor in tensors)

    def _of(self, tensor) -> bool:
        # An address counts as long as the tensor lives that it is known from.
        known = self._storages.get(tensor.untyped_storage().data_ptr())
        return known is not None and known() is not None

    def note(self, name: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/dinox/" in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "torch"
        self.reads.append(f"{name} in {place}")
