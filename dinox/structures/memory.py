"""Multi-scale features on their way through the model.

Sizes are Python numbers: whatever the host decides by them waits for no device.

Legend: B images, L levels, S memory tokens (all levels, level-major, row-major), D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dinox.utils.precision import coordinate_dtype

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class FeaturePyramid:
    """Feature maps of a batch, and which part of every map belongs to the image.

    maps: L tensors (B, C, h_l, w_l), highest resolution first.
    valid_sizes: of every image and level (B x L) the (height, width) in cells that the image fills from the top left;
    or once (1 x L) for all images.
    """

    maps: list[Tensor]
    valid_sizes: Sequence[Sequence[Size]]

    @classmethod
    def unpadded(cls, maps: list[Tensor]) -> FeaturePyramid:
        """Of images that all have the size of their batch."""
        return cls(maps, [[(m.shape[-2], m.shape[-1]) for m in maps]])

    @property
    def spatial_shapes(self) -> tuple[Size, ...]:
        return tuple((m.shape[-2], m.shape[-1]) for m in self.maps)

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Cells of every image on all levels, padding left out; one number if ``valid_sizes`` are given once."""
        return tuple(sum(h * w for h, w in levels) for levels in self.valid_sizes)

    def sizes(self) -> tuple[Tensor, Tensor]:
        """(B, L, 2) ``valid_sizes`` and (L, 2) sizes of the maps, as (width, height) beside the maps, in one copy."""
        sizes = torch.tensor([*self.valid_sizes, self.spatial_shapes], dtype=coordinate_dtype(self.maps[0])).flip(-1)
        sizes = sizes.to(self.maps[0].device, non_blocking=True)
        return sizes[:-1].expand(self.maps[0].shape[0], -1, -1), sizes[-1]

    def padding_masks(self, valid: Tensor) -> list[Tensor]:
        """valid: the first of ``sizes()``. Returns L tensors (B, h_l, w_l) bool, True = padding."""
        masks = []
        for level, (h, w) in enumerate(self.spatial_shapes):
            columns = torch.arange(w, device=valid.device) >= valid[:, level, :1]  # (B, w)
            rows = torch.arange(h, device=valid.device) >= valid[:, level, 1:]  # (B, h)
            masks.append(rows[:, :, None] | columns[:, None, :])
        return masks


def count_valid_cells(valid: Tensor, padded: int, cells: int) -> Tensor:
    """How many of ``cells`` feature cells per axis lie on the image, by nearest-neighbour resizing of the pixel mask.

    valid: (B,) pixels of each image along the axis; padded: pixels of the batch; cells: cells of the feature map.
    The resize is torch's own, so that rounding at cell borders is the one of the authors' code.
    """
    pixel_mask = (torch.arange(padded) < valid[:, None]).float()  # (B, padded)
    return F.interpolate(pixel_mask[:, None], size=cells, mode="nearest")[:, 0].sum(-1).long()


@dataclass(frozen=True)
class Memory:
    """Flattened multi-scale features; what encoders refine and decoders attend to.

    tokens: (B, S, D). positions: (B, S, D) position embedding of every token (level embedding included); (B, S, 2 D)
    where columns and rows are embedded apart. padding_mask: (B, S) bool, True = padding. spatial_shapes: L x (height,
    width). token_counts: tokens of every image that are not padding; one number if it holds for all images.
    valid_ratios: (B, L, 2), the share of (width, height) of every level that the image fills. cell_centers: (B, S, 2),
    centre (x, y) of every token's cell as a share of the image; > 1 in padding. embed_points: points (..., 2) -> the
    embedding that ``positions`` have, for decoders that compare the two; None where they embed points by themselves.
    """

    tokens: Tensor
    positions: Tensor
    padding_mask: Tensor
    spatial_shapes: tuple[Size, ...]
    token_counts: tuple[int, ...]
    valid_ratios: Tensor
    cell_centers: Tensor
    embed_points: Callable[[Tensor], Tensor] | None = None

    @property
    def is_padded(self) -> bool:
        """Whether any token is padding."""
        return min(self.token_counts) < self.tokens.shape[1]

    def with_tokens(self, tokens: Tensor) -> Memory:
        return dataclasses.replace(self, tokens=tokens)


def flatten_pyramid(
    pyramid: FeaturePyramid,
    embed_positions: Callable[[int, Tensor], Tensor],
    embed_points: Callable[[Tensor], Tensor] | None = None,
) -> Memory:
    """``embed_positions(level, padding_mask)``: (B, h, w) bool -> (B, h * w, D) position embedding of a level."""
    valid, level_sizes = pyramid.sizes()
    masks = pyramid.padding_masks(valid)
    return Memory(
        tokens=torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1),
        positions=torch.cat([embed_positions(level, mask) for level, mask in enumerate(masks)], dim=1),
        padding_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        spatial_shapes=pyramid.spatial_shapes,
        token_counts=pyramid.token_counts,
        valid_ratios=valid / level_sizes,
        cell_centers=torch.cat(
            [_cell_centers(size, valid[:, level]) for level, size in enumerate(pyramid.spatial_shapes)], dim=1
        ),
        embed_points=embed_points,
    )


def _cell_centers(size: Size, valid: Tensor) -> Tensor:
    """Centres of the cells of one level: size (h, w), valid (B, 2) as (width, height) -> (B, h * w, 2)."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h, device=valid.device), torch.arange(w, device=valid.device), indexing="ij")
    cells = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5  # (h * w, 2)
    return cells / valid[:, None]
