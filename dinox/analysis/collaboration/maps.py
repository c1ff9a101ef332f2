"""Maps of one image: how strongly features, attention and gradients stand out where (Co-DETR, section 3.4).

Legend: L levels, D channels, (H, W) the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def average_levels(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Equation 7 from its norms on: every level over its maximum, resized to the image, and the mean over levels.

    Args:
        maps: L tensors (h_l, w_l), nothing negative.
        size: (H, W); the resize is bilinear.

    Returns (H, W) in [0, 1]; a level that is 0 everywhere stays so.
    """
    resized = [
        F.interpolate((each / each.max().clamp(min=_tiny(each)))[None, None], size=size, mode="bilinear")[0, 0]
        for each in maps
    ]
    return torch.stack(resized).mean(0).clamp(0, 1)  # interpolation may overshoot by a rounding


def discriminability(features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """D(F) of equation 7, of the L2 norms over channels: L tensors (D, h_l, w_l) -> (H, W) in [0, 1]."""
    return average_levels([each.norm(dim=0) for each in features], size)


def grad_cam(features: Sequence[Tensor], gradients: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) on every level, joined as in equation 7 of Co-DETR.

    Args:
        features: L tensors (D, h_l, w_l).
        gradients: of one scalar with respect to them.

    Returns (H, W) in [0, 1], its maximum 1; or 0 everywhere, where nothing speaks for the scalar.
    """
    weights = [each.mean(dim=(1, 2)) for each in gradients]  # (D,): "importance" of a channel
    levels = [torch.einsum("d,dhw->hw", w, each).relu() for w, each in zip(weights, features, strict=True)]
    cam = average_levels(levels, size)
    return cam / cam.max().clamp(min=_tiny(cam))


def as_distribution(cam: Tensor) -> Tensor:
    """(H, W) in [0, 1] -> (H, W) float64, a softmax over all pixels.

    The papers do not say how class activation maps become distributions. A softmax is defined where a map is 0, and its
    distances are as large as the first version of the paper prints them (.0045 to .0143): those of two maps in [0, 1]
    are about half the variance of their difference.
    """
    return cam.double().flatten().softmax(0).view_as(cam)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
