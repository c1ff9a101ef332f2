"""GroupNorm for any width and any size of map."""

import torch
from torch import Tensor, nn

_MOST_GROUPS = 32  # GroupNorm groups of all published models


class GroupNorm(nn.GroupNorm):
    """GroupNorm that accepts groups of a single number (a 1x1 map with one channel per group): its output is the bias.

    ``nn.GroupNorm`` refuses those; the coarsest level of a small image is one.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with the greatest number of groups up to 32 that divides ``channels``."""
    groups = max(g for g in range(1, _MOST_GROUPS + 1) if channels % g == 0)
    return GroupNorm(groups, channels)
