"""Picking rows."""

from torch import Tensor


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B, S, C) at index (B, N) int64 -> (B, N, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
