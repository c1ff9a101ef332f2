"""Convolutions with a frozen norm behind them, in training as one operation instead of three passes over the map."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenNormConv(nn.Module):
    """detectron2's convolution with ``FrozenBatchNorm2d``, whose scale and shift are taken into weight and bias in
    training.

    The parameters, their names and their gradients are those of the two apart.
    """

    def __init__(self, conv: Conv2d):
        super().__init__()
        self.weight, self.bias, self.norm, self.activation = conv.weight, conv.bias, conv.norm, conv.activation
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if self.training:
            scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()  # (C',)
            mean = self.norm.running_mean if self.bias is None else self.norm.running_mean - self.bias
            x = self._convolve(x, self.weight * scale[:, None, None, None], self.norm.bias - mean * scale)
        else:  # apart, where the norm is one fast pass, so that detections are rounded as those of published models
            x = self.norm(self._convolve(x, self.weight, self.bias))
        return x if self.activation is None else self.activation(x)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def join_frozen_norms(module: nn.Module) -> None:
    """Replace every convolution inside of ``module`` that a frozen norm follows."""
    for name, child in module.named_children():
        if type(child) is Conv2d and isinstance(child.norm, FrozenBatchNorm2d):
            setattr(module, name, FrozenNormConv(child))
        else:
            join_frozen_norms(child)
