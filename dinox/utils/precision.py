"""Coordinates and losses never fall below float32, whatever the autocast dtype; float64 stays float64."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(coordinate_dtype(x))


def coordinate_dtype(like: Tensor) -> torch.dtype:
    """float64 beside float64 tensors, else float32: half precision cannot address a pixel of a large map."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32
