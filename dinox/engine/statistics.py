"""Running statistics of batch norms, alike in all processes."""

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class AveragedStatistics(HookBase):
    """After each step, running means and variances become the average of all processes', each of which sees other
    images.

    Otherwise each evaluates its images with statistics of its own, and only those of the first are in a checkpoint, so
    that a resumed run would evaluate otherwise than one that was not interrupted. One collective operation, and none in
    models without such norms. To be registered on all ranks, before evaluations and checkpoints.
    """

    def __init__(self, *, model: nn.Module):
        self._statistics = [
            tensor
            for module in model.modules()
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            for tensor in (module.running_mean, module.running_var)
            if tensor is not None
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        if comm.get_world_size() > 1 and self._statistics:
            average_across_ranks_(self._statistics)


def average_across_ranks_(tensors: list[Tensor]) -> None:
    """In place, by one collective operation; all of one dtype and device."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= comm.get_world_size()
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))
