"""What the operators' public functions check of their arguments before kernels see them."""

from typing import Any

import torch
from torch import Tensor

VALUE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def argument_error(argument: str, expected: str, got: Any) -> ValueError:
    return ValueError(f"ms_deform_attn: {argument}: expected {expected}, got {got}")


def check_value(value: Tensor) -> None:
    if value.dim() != 4:
        raise argument_error("value", "4 dimensions (B, S, H, C)", tuple(value.shape))
    if value.dtype not in VALUE_DTYPES:
        raise argument_error("value", "float32, float64, float16 or bfloat16", value.dtype)


def check_tensor(tensor: Tensor, name: str, legend: str, shape: tuple[int, ...], value: Tensor) -> None:
    """A floating point tensor of this shape, on the device of value."""
    if tuple(tensor.shape) != shape:
        raise argument_error(name, f"shape {legend} = {shape}", tuple(tensor.shape))
    if not tensor.is_floating_point():
        raise argument_error(name, "a floating point dtype", tensor.dtype)
    if tensor.device != value.device:
        raise argument_error(name, f"device {value.device} (that of value)", tensor.device)
