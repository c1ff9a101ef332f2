"""Multi-scale features on their way through the model.

Legend: B images, L levels, S memory tokens (all levels, level-major, row-major), D channels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class FeaturePyramid:
    """Feature maps of a batch, and which part of every map belongs to the image.

    maps: L tensors (B, C, h_l, w_l), highest resolution first.
    valid_sizes: (B, L, 2) int64 on the CPU, the (height, width) in cells that the image fills from the top left.
    """

    maps: list[Tensor]
    valid_sizes: Tensor

    @property
    def spatial_shapes(self) -> tuple[Size, ...]:
        return tuple((m.shape[-2], m.shape[-1]) for m in self.maps)

    def padding_masks(self) -> list[Tensor]:
        """L tensors (B, h_l, w_l) bool, True = padding."""
        device = self.maps[0].device
        valid = self.valid_sizes.to(device)
        masks = []
        for level, (h, w) in enumerate(self.spatial_shapes):
            rows = torch.arange(h, device=device) >= valid[:, level, :1]  # (B, h)
            columns = torch.arange(w, device=device) >= valid[:, level, 1:]  # (B, w)
            masks.append(rows[:, :, None] | columns[:, None, :])
        return masks


def valid_cells(valid: Tensor, padded: int, cells: int) -> Tensor:
    """How many of ``cells`` feature cells per axis lie on the image, by nearest-neighbour resizing of the pixel mask.

    valid: (B,) pixels of each image along the axis; padded: pixels of the batch; cells: cells of the feature map.
    The resize is torch's own, so that rounding at cell borders is the one of the authors' code.
    """
    pixel_mask = (torch.arange(padded) < valid[:, None]).float()  # (B, padded)
    return F.interpolate(pixel_mask[:, None], size=cells, mode="nearest")[:, 0].sum(-1).long()


@dataclass(frozen=True)
class Memory:
    """Flattened multi-scale features; what encoders refine and decoders attend to.

    tokens: (B, S, D).
    positions: (B, S, D) position embedding of every token (level embedding included).
    padding_mask: (B, S) bool, True = padding.
    spatial_shapes: L x (height, width).
    valid_sizes: (B, L, 2) int64 on the CPU, (height, width) in cells that the image fills.
    """

    tokens: Tensor
    positions: Tensor
    padding_mask: Tensor
    spatial_shapes: tuple[Size, ...]
    valid_sizes: Tensor

    def with_tokens(self, tokens: Tensor) -> Memory:
        return dataclasses.replace(self, tokens=tokens)

    @cached_property
    def is_padded(self) -> bool:
        """Whether any token is padding; decided on the host."""
        return bool((self.valid_sizes != torch.tensor(self.spatial_shapes)).any())

    @cached_property
    def token_counts(self) -> tuple[int, ...]:
        """Tokens of every image that are not padding; known on the host."""
        return tuple(self.valid_sizes.prod(-1).sum(-1).tolist())

    @cached_property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2) share of (width, height) of every level that the image fills."""
        sizes = torch.tensor(self.spatial_shapes)  # (L, 2)
        return (self.valid_sizes / sizes).flip(-1).float().to(self.tokens.device)

    @cached_property
    def cell_centers(self) -> Tensor:
        """(B, S, 2) centre (x, y) of every token's cell, as a share of the image: 1 at its far border, > 1 beyond."""
        device = self.tokens.device
        valid = self.valid_sizes.to(device)
        centers = []
        for level, (h, w) in enumerate(self.spatial_shapes):
            y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
            cells = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5  # (h*w, 2)
            centers.append(cells / valid[:, level].flip(-1)[:, None])  # (B, h*w, 2)
        return torch.cat(centers, dim=1)

    @cached_property
    def token_levels(self) -> Tensor:
        """(S,) level index of every token."""
        sizes = torch.tensor([h * w for h, w in self.spatial_shapes])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(self.tokens.device)

    def level_maps(self) -> list[Tensor]:
        """The tokens as L maps (B, D, h_l, w_l)."""
        pieces = self.tokens.split([h * w for h, w in self.spatial_shapes], dim=1)
        return [p.transpose(1, 2).unflatten(2, hw) for p, hw in zip(pieces, self.spatial_shapes, strict=True)]
