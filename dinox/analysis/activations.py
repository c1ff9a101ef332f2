"""What a training step has to remember: the tensors that autograd keeps for the backward pass.

They are the larger part of the memory that a training step needs, and grow with the batch and the image. Beside them
there are the weights, their gradients, two numbers per weight for AdamW, and what single operations need for a moment.
"""

from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from dinox.analysis.modes import in_mode
from dinox.analysis.parts import BETWEEN, watch_parts
from dinox.engine.trainer import AUTOCAST_DTYPES


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes kept for the backward pass when the forward pass of a training step ends.

    parts: by child of the model, where there are any; ``BETWEEN`` is what the model itself computes between them. A
    tensor that several operations keep counts once, for the first of them: a part's input belongs to the part before
    only if that one keeps it too.
    """

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def measure_activation_memory(model: nn.Module, inputs: list[dict], *, precision: str = "fp32") -> ActivationMemory:
    """Run the forward pass of one training step on ``inputs`` and add up what autograd saves.

    Storages count, not tensors: views of one storage count once, with all of it. Parameters, buffers and the images
    themselves, which are there anyway, do not count. What a custom function keeps past ``save_for_backward`` is not
    seen. The same on CPU and GPU, but for operators that keep other things there.

    Args:
        precision: "fp32", "bf16" or "fp16", as for training.
    """
    dtype = AUTOCAST_DTYPES[precision]
    ledger = _Ledger(known=[*model.parameters(), *model.buffers(), *(x["image"] for x in inputs)])
    with in_mode(model, training=True), watch_parts(model, ledger.switch):
        device = next(model.parameters()).device.type
        with (
            torch.autograd.graph.saved_tensors_hooks(ledger.save, lambda tensor: tensor),
            torch.autocast(device, dtype=dtype, enabled=dtype is not None),
            EventStorage(),  # detectron2's own models insist on one
        ):
            losses = model(inputs)
        del losses  # the graph lives until here: freed storages could otherwise count twice under a new address
    return ActivationMemory(ledger.bytes_by_part)


class _Ledger:
    """Storages by address, each once. ``known``: tensors whose storages do not count."""

    def __init__(self, *, known: list[Tensor]):
        self.bytes_by_part: dict[str, int] = {}
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._part = BETWEEN

    def switch(self, part: str | None) -> None:
        self._part = BETWEEN if part is None else part

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes_by_part[self._part] = self.bytes_by_part.get(self._part, 0) + storage.nbytes()
        return tensor
