"""Noise on ground-truth boxes, for everything that learns to restore them: denoising queries, denoising ROI heads.

Random numbers are drawn apart from their use, so that a test can bring its own.

Legend: B images, C copies of the ground truth, M objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.structures.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from dinox.utils.ranges import check_range


@dataclass(frozen=True)
class BoxNoiseDraws:
    """The random numbers that box noise is made of, four for each noised box. Noise takes any object with these two.

    sign: (B, C, M, 4) -1 or 1. magnitude: (B, C, M, 4) uniform in [0, 1).
    """

    sign: Tensor
    magnitude: Tensor


def draw_box_noise(
    shape: Sequence[int], *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> BoxNoiseDraws:
    """shape: (B, C, M). ``generator`` lives on ``device``."""
    draw = {"generator": generator, "device": device}
    return BoxNoiseDraws(
        sign=torch.randint(2, (*shape, 4), **draw) * 2.0 - 1.0, magnitude=torch.rand((*shape, 4), **draw)
    )


class CenterShiftAndScale:
    """DN-DETR's box noise (section 4.2): the centre moves by up to ``center_shift`` half sizes, the size changes by up
    to the share ``scale``. The four cxcywh numbers are clamped to [0, 1]; the box itself may stick out of the image.
    """

    halves = 1

    def __init__(self, *, center_shift: float = 0.4, scale: float = 0.4):
        check_range("center_shift", center_shift, 0, 1)
        check_range("scale", scale, 0, 1)
        self.center_shift, self.scale = center_shift, scale

    def __call__(self, boxes: Tensor, noise: BoxNoiseDraws) -> Tensor:
        """boxes: (B, 1, M, 4) normalised cxcywh -> (B, C, M, 4)."""
        size = boxes[..., 2:]
        reach = torch.cat([size * 0.5 * self.center_shift, size * self.scale], dim=-1)
        return (boxes + noise.sign * noise.magnitude * reach).clamp(0, 1)


class ContrastiveBoxNoise:
    """DINO's box noise: every corner coordinate of a positive moves by up to ``lambda1`` half sizes, that of a negative
    by ``lambda1`` to ``lambda2`` (section 3.3; 1.0 and 2.0 in appendix D.3). Corners are clamped to the image; the
    corners of a negative may swap, which leaves a degenerate box, as in the authors' code.
    """

    halves = 2

    def __init__(self, *, lambda1: float = 1.0, lambda2: float = 2.0):
        if not 0 <= lambda1 <= lambda2:
            raise ValueError(f"box noise needs 0 <= lambda1 <= lambda2, got lambda1 = {lambda1}, lambda2 = {lambda2}")
        self.lambda1, self.lambda2 = lambda1, lambda2

    def __call__(self, boxes: Tensor, noise: BoxNoiseDraws) -> Tensor:
        """boxes: (B, 1, M, 4) normalised cxcywh -> (B, C, M, 4), positives and negatives alternating along C."""
        reach = noise.magnitude * self.lambda1
        reach[:, 1::2] = self.lambda1 + noise.magnitude[:, 1::2] * (self.lambda2 - self.lambda1)
        return _move_corners(boxes, noise.sign * reach)


class SameRangeBoxNoise:
    """Stable-DINO's box noise as its authors released it: contrastive denoising without the offset of the negatives, so
    that every corner coordinate of both moves by up to ``scale`` half sizes.
    """

    halves = 2

    def __init__(self, *, scale: float = 1.0):
        check_range("scale", scale, 0)
        self.scale = scale

    def __call__(self, boxes: Tensor, noise: BoxNoiseDraws) -> Tensor:
        """boxes: (B, 1, M, 4) normalised cxcywh -> (B, C, M, 4), positives and negatives alternating along C."""
        return _move_corners(boxes, noise.sign * noise.magnitude * self.scale)


def _move_corners(boxes: Tensor, shift: Tensor) -> Tensor:
    """boxes: (B, 1, M, 4) cxcywh; shift: (B, C, M, 4) of the corner coordinates, in half sizes -> (B, C, M, 4)."""
    half_size = boxes[..., 2:].repeat(1, 1, 1, 2) * 0.5
    corners = cxcywh_to_xyxy(boxes) + shift * half_size
    return xyxy_to_cxcywh(corners.clamp(0, 1)).clamp(0, 1)
