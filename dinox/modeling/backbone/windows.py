"""Transformer blocks of timm, with attention of our choice around their projections: inside windows, or shifted ones.

Legend: B images, H, W cells, C channels, h, w sides of a window, N = h * w.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MASKED = -100.0  # what Swin's authors add to logits of pairs that do not see each other


@dataclass(frozen=True)
class Windows:
    """tokens: (B * windows, N, C), windows in row-major order. size: (h, w). padded: (H, W) with padding."""

    tokens: Tensor
    size: tuple[int, int]
    padded: tuple[int, int]


def pad_to_windows(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> zeros to the right and below, up to whole windows."""
    return F.pad(cells, (0, 0, 0, -cells.shape[2] % size[1], 0, -cells.shape[1] % size[0]))


def cut_windows(cells: Tensor, size: tuple[int, int]) -> Windows:
    """(B, H, W, C) -> windows without overlap. Cells that are missing to the right and below are zeros."""
    (h, w), (batch, *_, channels) = size, cells.shape
    cells = pad_to_windows(cells, size)
    rows, columns = cells.shape[1] // h, cells.shape[2] // w
    tokens = cells.view(batch, rows, h, columns, w, channels).transpose(2, 3).reshape(-1, h * w, channels)
    return Windows(tokens, size, (rows * h, columns * w))


def join_windows(windows: Windows, height: int, width: int) -> Tensor:
    """Inverse of ``cut_windows``: (B, height, width, C), padding cut off."""
    (h, w), (padded_height, padded_width) = windows.size, windows.padded
    rows, columns = padded_height // h, padded_width // w
    cells = windows.tokens.view(-1, rows, columns, h, w, windows.tokens.shape[-1]).transpose(2, 3)
    return cells.reshape(-1, padded_height, padded_width, cells.shape[-1])[:, :height, :width]


def attend_in_windows(cells: Tensor, size: tuple[int, int], attention: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, H, W, C) -> same; ``attention``: (B * windows, N, C) -> same."""
    windows = cut_windows(cells, size)
    attended = Windows(attention(windows.tokens), windows.size, windows.padded)
    return join_windows(attended, cells.shape[1], cells.shape[2])


def shifted_window_mask(height: int, width: int, size: int, shift: int, *, like: Tensor) -> Tensor:
    """(windows, N, N): added to the logits of windows of a map that was rolled by ``shift`` cells up and left.

    The last window of each row and column then holds cells of two opposite edges, which do not see each other (Liu et
    al. 2021, section 3.2). height, width: multiples of ``size``.
    """

    def regions(length: int) -> Tensor:
        cells = torch.arange(length, device=like.device)
        return (cells >= length - size).int() + (cells >= length - shift).int()

    region = 3 * regions(height)[:, None] + regions(width)
    region = cut_windows(region[None, :, :, None], (size, size)).tokens.squeeze(-1)  # (windows, N)
    apart = region[:, None, :] != region[:, :, None]
    return torch.zeros(apart.shape, device=like.device, dtype=like.dtype).masked_fill(apart, MASKED)


def transformer_block(block: nn.Module, cells: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """A pre-norm block of timm (its Swin's, ViT's or EVA's) on (B, H, W, C); ``attend`` works on normed cells.

    What attention needs beyond cells (windows, shifts, their padding) comes after the norm, as in the detectors that
    published weights are of: padding is zero there.
    """
    cells = cells + block.drop_path1(_layer_scale(block, 1, attend(block.norm1(cells))))
    return cells + block.drop_path2(_layer_scale(block, 2, block.mlp(block.norm2(cells))))


def run_block(
    block: nn.Module, cells: Tensor, attend: Callable[[Tensor], Tensor], *, gradient_checkpointing: bool
) -> Tensor:
    """``transformer_block``; with checkpointing its activations are computed again in the backward pass."""
    if gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(transformer_block, block, cells, attend, use_reentrant=False)
    return transformer_block(block, cells, attend)


def shards_of_blocks(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """What ``transformer_block`` calls as modules, and nearly all weights of a block are in."""
    return [part for block in blocks for part in (block.attn, block.mlp)]


def _layer_scale(block: nn.Module, branch: int, cells: Tensor) -> Tensor:
    """A module in timm's ViT, a parameter in its EVA, and nothing in its Swin."""
    scale = getattr(block, f"gamma_{branch}", None)
    if scale is not None:
        return scale * cells
    module = getattr(block, f"ls{branch}", None)
    return cells if module is None else module(cells)
