"""From images of any sizes to the backbone's maps: in training padded before the backbone, else after it.

Legend: B images, L levels, D channels.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.structures import FeaturePyramid
from dinox.structures.memory import count_valid_cells


def padded_pyramid(backbone: nn.Module, images: list[Tensor]) -> FeaturePyramid:
    """All images in one padded batch through the backbone, as in the papers' training."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    maps = list(backbone(torch.stack([_pad(image, height, width) for image in images])).values())
    heights, widths = torch.tensor([image.shape[1:] for image in images]).unbind(1)
    valid = [
        torch.stack(
            [count_valid_cells(heights, height, m.shape[2]), count_valid_cells(widths, width, m.shape[3])], dim=-1
        )
        for m in maps
    ]
    return FeaturePyramid(maps, torch.stack(valid, dim=1).tolist())


def unpadded_pyramid(backbone: nn.Module, images: list[Tensor]) -> FeaturePyramid:
    """Every image through the backbone without padding (equal sizes together); the maps are padded afterwards.

    Zero padding is not neutral to frozen-norm shifts and group norms, so that padded images would depend on their
    batch.
    """
    maps: list[list[Tensor]] = [[] for _ in images]  # per image, L x (D, h, w)
    by_size = sorted(range(len(images)), key=lambda i: images[i].shape)
    for _, same_size in groupby(by_size, key=lambda i: images[i].shape):
        indices = list(same_size)
        batch = backbone(torch.stack([images[i] for i in indices])).values()
        for row, i in enumerate(indices):
            maps[i] = [m[row] for m in batch]
    valid = [[(m.shape[1], m.shape[2]) for m in levels] for levels in maps]  # B x L x (h, w)
    padded = []
    for level, sizes in enumerate(zip(*valid, strict=True)):
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        padded.append(torch.stack([_pad(levels[level], height, width) for levels in maps]))
    return FeaturePyramid(padded, valid)


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    """Zeros to the right and below: (C, h, w) -> (C, height, width)."""
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
