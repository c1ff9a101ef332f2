"""The two convolution branches of one-stage heads, shared by all levels.

Legend: B images, D channels, K classes, A anchors of a cell, P anchors of an image (level-major, row-major).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers import group_norm
from dinox.structures import ClassRows, HeadPyramid
from dinox.utils.precision import at_least_float32
from dinox.utils.ranges import check_range

Norm = Literal["GN", ""]

_PRIOR = 0.01  # probability of every class at the start (focal loss, section 4.1)
_STD = 0.01  # of all convolutions at the start


@dataclass(frozen=True)
class DensePredictions:
    """logits: (B, P, K). boxes: (B, P, numbers per box), in the terms of the head. quality: (B, P) logits, or None."""

    logits: Tensor
    boxes: Tensor
    quality: Tensor | None


class LevelScales(nn.Module):
    """A learned factor per level for what a shared convolution predicts (FCOS, section 3.2)."""

    def __init__(self, *, num_levels: int):
        super().__init__()
        self.factors = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(num_levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        return x * self.factors[level]


class _ConvNormReLU(nn.Module):
    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "")
        self.norm = group_norm(channels) if norm == "GN" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class DenseBranches(nn.Module):
    """Two towers of ``num_convs`` 3x3 convolutions on every map: one for classes, the other for boxes.

    Args:
        num_convs: of each tower; 1 in Co-DETR, 4 in the heads' own papers, 0 for none.
        num_anchors: A.
        box_channels: numbers per box.
        quality_channels: numbers per box that say how good it is (centerness, IoU), from the tower for boxes; 0 or 1.
        level_scales: of the boxes; None: they are as predicted.
        norm: of the towers.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_convs: int,
        num_anchors: int = 1,
        box_channels: int = 4,
        quality_channels: int = 0,
        level_scales: LevelScales | None,
        norm: Norm = "GN",
    ):
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(map(repr, get_args(Norm)))}, got {norm!r}")
        check_range("num_classes", num_classes, 1)
        check_range("num_convs", num_convs, 0)
        self.num_classes, self.num_anchors, self.box_channels = num_classes, num_anchors, box_channels
        self.class_tower = nn.Sequential(*(_ConvNormReLU(embed_dim, norm) for _ in range(num_convs)))
        self.box_tower = nn.Sequential(*(_ConvNormReLU(embed_dim, norm) for _ in range(num_convs)))
        outputs = [num_classes, box_channels, quality_channels]
        class_output, box_output, quality_output = (
            nn.Conv2d(embed_dim, num_anchors * channels, 3, padding=1) if channels else None for channels in outputs
        )
        self.class_output, self.box_output, self.quality_output = class_output, box_output, quality_output
        self.level_scales = level_scales
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.class_output.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def class_rows(self) -> dict[str, ClassRows]:
        return {f"class_output.{name}": ClassRows(blocks=self.num_anchors) for name in self.class_output.state_dict()}

    def forward(self, pyramid: HeadPyramid) -> DensePredictions:
        logits, boxes, quality = [], [], []
        for level, feature in enumerate(pyramid.maps):
            logits.append(_flatten(self.class_output(self.class_tower(feature)), self.num_classes))
            for_boxes = self.box_tower(feature)
            predicted = at_least_float32(_flatten(self.box_output(for_boxes), self.box_channels))
            boxes.append(predicted if self.level_scales is None else self.level_scales(predicted, level))
            if self.quality_output is not None:
                quality.append(_flatten(self.quality_output(for_boxes), 1))
        return DensePredictions(
            logits=at_least_float32(torch.cat(logits, dim=1)),
            boxes=torch.cat(boxes, dim=1),
            quality=at_least_float32(torch.cat(quality, dim=1).squeeze(-1)) if quality else None,
        )


def check_pyramid(pyramid: HeadPyramid, num_levels: int, head: str) -> None:
    """Raises ValueError if there are not ``num_levels`` maps, or if they are smaller than their strides say."""
    if not len(pyramid.maps) == len(pyramid.strides) == num_levels:
        raise ValueError(
            f"{head}: expected a pyramid of num_levels = {num_levels} maps, got {len(pyramid.maps)} maps and strides "
            f"{tuple(pyramid.strides)}. Set num_levels of the head to the number of levels of the pyramid."
        )
    height, width = (max(sides) for sides in zip(*pyramid.image_sizes))
    for level, (feature, stride) in enumerate(zip(pyramid.maps, pyramid.strides)):
        h, w = feature.shape[-2:]
        if math.floor(height / stride) > h or math.floor(width / stride) > w:
            raise ValueError(
                f"{head}: the map of level {level} has {h} x {w} cells, too few for a stride of {stride} in images of "
                f"up to {height} x {width} pixels. The pyramid's strides have to be those of its maps."
            )


def _flatten(x: Tensor, channels: int) -> Tensor:
    """(B, A * channels, h, w) -> (B, h * w * A, channels)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, channels)
