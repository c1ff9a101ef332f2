"""The shapes at which deformable attention is measured: encoders and decoders of real detectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

HEADS, CHANNELS, POINTS = 8, 32, 4
_NEAR_PIXELS = 2.5  # standard deviation of offsets around the references, about what trained detectors have


@dataclass(frozen=True)
class Case:
    """``sizes``: (height, width) of each level. ``queries``: None for an encoder, whose queries are the tokens."""

    name: str
    description: str
    sizes: tuple[tuple[int, int], ...]
    queries: int | None
    images: int

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.sizes)

    @property
    def num_queries(self) -> int:
        return self.tokens if self.queries is None else self.queries

    @property
    def samples(self) -> int:
        return self.images * self.num_queries * HEADS * len(self.sizes) * POINTS


def _pyramid(height: int, width: int, strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


_FOUR_SCALES, _FIVE_SCALES = (8, 16, 32, 64), (4, 8, 16, 32, 64)
_LARGE, _SMALL = (800, 1333), (480, 640)

CASES = {
    case.name: case
    for case in (
        Case("E4", "encoder, 800x1333, 4 scales", _pyramid(*_LARGE, _FOUR_SCALES), None, 1),
        Case("E4b2", "the same, 2 images", _pyramid(*_LARGE, _FOUR_SCALES), None, 2),
        Case("E5", "encoder, 800x1333, 5 scales, 2 images", _pyramid(*_LARGE, _FIVE_SCALES), None, 2),
        Case("E480", "encoder, 480x640, 4 scales", _pyramid(*_SMALL, _FOUR_SCALES), None, 1),
        Case("D900", "decoder, 900 queries, 800x1333", _pyramid(*_LARGE, _FOUR_SCALES), 900, 1),
        Case("D1100", "decoder with denoising, 1100 queries, 2 images", _pyramid(*_LARGE, _FOUR_SCALES), 1100, 2),
    )
}


@dataclass(frozen=True)
class Inputs:
    """What the operators take.

    value (B, S, H, C), references (B, Q, L, 2), offsets (B, Q, H, L, P, 2) in cells, logits (B, Q, H, L, P); and what
    the last three amount to: locations (B, Q, H, L, P, 2) in [0, 1] and weights (B, Q, H, L, P).
    """

    sizes: tuple[tuple[int, int], ...]
    value: Tensor
    references: Tensor
    offsets: Tensor
    logits: Tensor
    locations: Tensor
    weights: Tensor


def make_inputs(
    case: Case, *, near: bool = True, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Inputs:
    """``near``: offsets of a few cells around the queries' own places, as in detectors; else anywhere in the image."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.images, case.num_queries, HEADS, len(case.sizes), POINTS)
    cells = torch.tensor(case.sizes).flip(-1)[:, None].float()  # (L, 1, 2): (width, height)
    centers = _cell_centers(case.sizes) if case.queries is None else torch.rand(case.queries, 2, generator=generator)
    references = centers[None, :, None].expand(case.images, -1, len(case.sizes), -1).contiguous()
    if near:
        offsets = torch.randn(*shape, 2, generator=generator) * _NEAR_PIXELS
    else:
        offsets = (torch.rand(*shape, 2, generator=generator) - references[:, :, None, :, None]) * cells
    logits = torch.randn(shape, generator=generator)
    value = torch.randn(case.images, case.tokens, HEADS, CHANNELS, generator=generator)
    locations = references[:, :, None, :, None] + offsets / cells
    weights = logits.flatten(-2).softmax(-1).view(shape)
    return Inputs(
        case.sizes,
        value.to(device, dtype),
        *(tensor.to(device) for tensor in (references, offsets, logits, locations, weights)),
    )


def _cell_centers(sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """(S, 2), xy in [0, 1], level by level."""
    grids = [torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij") for h, w in sizes]
    return torch.cat([torch.stack([x, y], -1).flatten(0, 1) for y, x in grids])
