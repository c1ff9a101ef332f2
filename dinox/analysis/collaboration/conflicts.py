"""Distances between heads by what they look at (Co-DETR, equations 9 to 12).

Legend: J heads.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def kl_matrix(distributions: Sequence[Tensor]) -> Tensor:
    """KL(P_i || P_j) of all pairs: J tensors (H, W), positive and of sum 1 -> (J, J), in nats."""
    logs = torch.stack([each.flatten().log() for each in distributions])  # (J, H * W)
    weights = logs.exp()
    return torch.stack([(weights[i] * (logs[i] - logs)).sum(1) for i in range(len(logs))])


def mean_to_others(matrix: Tensor) -> Tensor:
    """S_i (equation 10): the mean over the other heads of S_ij, (J, J) -> (J,). NaN, unknown, does not count."""
    own = torch.eye(len(matrix), dtype=torch.bool)
    return matrix.masked_fill(own, torch.nan).nanmean(1)


class ConflictSum:
    """S_ij (equation 9) as the mean over the images in which both heads have a map."""

    def __init__(self, heads: Sequence[str]) -> None:
        self.heads = tuple(heads)
        self._sums = torch.zeros(len(heads), len(heads), dtype=torch.float64)
        self._counts = torch.zeros(len(heads), len(heads), dtype=torch.int64)

    def add(self, distributions: Mapping[str, Tensor]) -> None:
        """By head, of one image; heads without any positives there are missing."""
        index = [i for i, head in enumerate(self.heads) if head in distributions]
        if not index:
            return
        rows = torch.tensor(index)
        matrix = kl_matrix([distributions[self.heads[i]] for i in index]).cpu()
        self._sums[rows[:, None], rows] += matrix
        self._counts[rows[:, None], rows] += 1

    @property
    def images(self) -> Tensor:
        """(J, J) int64: how many of them each mean is over."""
        return self._counts

    def matrix(self) -> Tensor:
        """(J, J); NaN where no image has maps of both heads."""
        return self._sums / self._counts
