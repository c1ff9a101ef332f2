"""Tensors of which every process holds a part (torch's DTensor, as FSDP makes them), and whole ones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def is_sharded(value: Any) -> bool:
    """Is it a tensor of which this process has a part only?"""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def has_shards(model: nn.Module) -> bool:
    return any(is_sharded(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes, which have to call this together. A whole one is returned as is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def whole_state(state: Any, *, keep: bool = True) -> Any:
    """A state dict, or anything made of dicts, lists and tuples, with whole tensors, on the CPU, for sharded ones.

    All processes have to call this together. keep: False for those that only lend their parts: sharded tensors become
    None there.
    """
    if is_sharded(state):
        full = state.detach().full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: whole_state(value, keep=keep) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(whole_state(value, keep=keep) for value in state)
    return state


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, which all have alike; of a tensor that is no part, the tensor itself."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes a second to import

    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
