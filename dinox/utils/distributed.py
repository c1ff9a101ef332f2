"""Numbers that all ranks have to agree on; every function returns its argument when training is not distributed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinox.utils.compat import cpu_group

LONG_WAIT = timedelta(hours=6)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of a DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_across_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over the ranks; no gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world_size()


def max_across_ranks(value: int) -> int:
    """Greatest value of any rank; on the hosts, so that none waits for its device."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=cpu_group())
    return int(tensor)


@contextmanager
def long_wait(limit: timedelta = LONG_WAIT) -> Iterator[Callable[[], None]]:
    """Yields a barrier for work that one rank does alone and that takes longer than ranks wait for each other else.

    To be entered by all ranks before that work begins.
    """
    if world_size() == 1:
        yield lambda: None
        return
    group = dist.new_group(backend="gloo", timeout=limit)
    yield lambda: dist.barrier(group)
    dist.destroy_process_group(group)  # not after an error, where others may still be in it
