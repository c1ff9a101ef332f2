"""Anchors of all cells of a pyramid, and boxes relative to them.

Legend: B images, L levels, A anchors of a cell, P anchors of an image (level-major, row-major, cell by cell).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinox.structures import HeadPyramid, cxcywh_to_xyxy, xyxy_to_cxcywh
from dinox.utils.precision import coordinate_dtype

DELTA_STDS = (0.1, 0.1, 0.2, 0.2)  # of x, y, width and height, in sides of the anchor (the R-CNN family and ATSS)
_MAX_LOG_RATIO = math.log(1000 / 16)  # of predicted sides to those of the anchor, as in the R-CNN family


@dataclass(frozen=True)
class Anchors:
    """boxes: (P, 4) absolute xyxy. per_cell: A.

    level_strides, level_sizes: L, stride and number of anchors of every level. valid_sizes: B x L, how many of them lie
    on the image. valid_index: B tensors, which those are.
    """

    boxes: Tensor
    per_cell: int
    level_strides: tuple[int, ...]
    level_sizes: tuple[int, ...]
    valid_sizes: tuple[tuple[int, ...], ...]
    valid_index: tuple[Tensor, ...]

    @property
    def strides(self) -> Tensor:
        """(P,) of each one's level, in pixels."""
        return self.per_level(self.level_strides)

    @property
    def centers(self) -> Tensor:
        """(P, 2)"""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def per_level(self, values: Sequence[float]) -> Tensor:
        """L numbers -> (P,), that of each one's level; filled on the device."""
        return torch.cat([self.boxes.new_full((size,), v) for v, size in zip(values, self.level_sizes, strict=True)])

    def of_image(self, image: int) -> Tensor:
        """(anchors on that image, 4): without those in its padding."""
        return self.boxes[self.valid_index[image]]

    def valid(self) -> Tensor:
        """(B, P) bool: on the image, not in its padding."""
        valid = self.boxes.new_zeros(len(self.valid_index), len(self.boxes), dtype=torch.bool)
        for row, index in zip(valid, self.valid_index, strict=True):
            row[index] = True
        return valid


def square_anchor(scale: float = 8.0) -> Tensor:
    """(1, 4): a square of ``scale`` strides around the origin, in strides (ATSS, section 4.1)."""
    return torch.tensor([[-scale / 2, -scale / 2, scale / 2, scale / 2]])


def octave_anchors(
    *, scale: float = 4.0, num_octaves: int = 3, aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> Tensor:
    """(A, 4) xyxy around the origin, in strides: RetinaNet's, ratio by ratio (height / width), scale by scale.

    detectron2's generator has the two loops the other way round, so that its weights have another order.
    """
    sizes = [scale * 2 ** (octave / num_octaves) for octave in range(num_octaves)]
    sides = torch.tensor([[size / ratio**0.5, size * ratio**0.5] for ratio in aspect_ratios for size in sizes])
    return torch.cat([-sides / 2, sides / 2], dim=1)


def place_anchors(pyramid: HeadPyramid, cell_anchors: Tensor, *, offset: float = 0.0) -> Anchors:
    """cell_anchors: (A, 4) xyxy around the origin in strides -> one copy for every cell of every map.

    The first cell's are centred at ``offset`` strides: 0 as mmdetection's anchors, 0.5 for the middle of the cell.
    """
    feature = pyramid.maps[0]
    cell_anchors = cell_anchors.to(feature.device, coordinate_dtype(feature))
    per_cell = len(cell_anchors)
    boxes, level_sizes = [], []
    for level_map, stride in zip(pyramid.maps, pyramid.strides, strict=True):
        h, w = level_map.shape[-2:]
        y, x = (torch.arange(n, device=cell_anchors.device, dtype=cell_anchors.dtype) + offset for n in (h, w))
        x, y = x.expand(h, w), y[:, None].expand(h, w)
        shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (h * w, 1, 4)
        boxes.append((shift * stride + cell_anchors * stride).flatten(0, 1))
        level_sizes.append(h * w * per_cell)
    cells = [valid_cells(pyramid, size) for size in pyramid.image_sizes]
    return Anchors(
        boxes=torch.cat(boxes),
        per_cell=per_cell,
        level_strides=tuple(pyramid.strides),
        level_sizes=tuple(level_sizes),
        valid_sizes=tuple(tuple(h * w * per_cell for h, w in levels) for levels in cells),
        valid_index=tuple(_valid_index(pyramid, levels, per_cell) for levels in cells),
    )


def valid_cells(pyramid: HeadPyramid, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """L x (height, width) in cells that an image fills from the top left, the last row and column included."""
    return [
        tuple(min(math.ceil(pixels / stride), cells) for pixels, cells in zip(image_size, level_map.shape[-2:]))
        for level_map, stride in zip(pyramid.maps, pyramid.strides, strict=True)
    ]


def _valid_index(pyramid: HeadPyramid, valid: Sequence[tuple[int, int]], per_cell: int) -> Tensor:
    """Indices of the anchors of an image's cells; found without waiting for the device."""
    indices, start = [], 0
    for level_map, (rows, columns) in zip(pyramid.maps, valid, strict=True):
        h, w = level_map.shape[-2:]
        index = torch.arange(start, start + h * w * per_cell, device=level_map.device).view(h, w, per_cell)
        indices.append(index[:rows, :columns].flatten())
        start += index.numel()
    return torch.cat(indices)


def apply_deltas(anchors: Tensor, deltas: Tensor, stds: Sequence[float]) -> Tensor:
    """Boxes (..., 4) xyxy of what a head predicts (..., 4): shifts in sides of the anchor and logarithms of ratios.

    stds: the deltas are predicted in units of these. As detectron2's ``Box2BoxTransform``, but in any precision, and
    shrinking is limited as growing is (mmdetection).
    """
    boxes = xyxy_to_cxcywh(anchors)
    shift, log_ratio = (deltas * deltas.new_tensor(stds)).split(2, dim=-1)
    sides = boxes[..., 2:] * log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    return cxcywh_to_xyxy(torch.cat([boxes[..., :2] + shift * boxes[..., 2:], sides], dim=-1))


def apply_distances(points: Tensor, distances: Tensor) -> Tensor:
    """points (..., 2) and distances (..., 4) to the left, top, right and bottom side, same unit -> (..., 4) xyxy."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
