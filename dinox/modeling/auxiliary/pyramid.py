"""From the encoder's memory to the feature pyramid that auxiliary heads read (Co-DETR, section 3.2).

Legend: B images, L levels, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from dinox.layers import group_norm
from dinox.structures import Memory

# Arithmetic for configs, which are data: ``num_levels`` of heads behind a DownsampledPyramid, from the backbone's.
OmegaConf.register_new_resolver("dinox.one_more", lambda levels: levels + 1, replace=True)


def level_maps(memory: Memory) -> list[Tensor]:
    """The memory's tokens as L maps (B, D, h_l, w_l) again."""
    sizes = memory.spatial_shapes
    levels = memory.tokens.split([height * width for height, width in sizes], dim=1)
    return [level.transpose(1, 2).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]


class DownsampledPyramid(nn.Module):
    """For encoders of several levels: their maps, and one more from a 3x3 convolution of stride 2 on the coarsest.

    With the levels of Deformable DETR (strides 8 to 64) that is 8 to 128, with five (4 to 64) it is 4 to 128.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.downsample = _halving(embed_dim)

    def strides(self, memory_strides: Sequence[int]) -> tuple[int, ...]:
        """Of the pyramid, in pixels, from those of the memory's levels."""
        return (*memory_strides, 2 * memory_strides[-1])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """L maps (B, D, h_l, w_l), highest resolution first -> L + 1 maps."""
        return [*maps, self.downsample(maps[-1])]


class SingleScalePyramid(nn.Module):
    """For encoders of one level: bilinear upsampling and 3x3 convolutions on one side, 3x3 convolutions of stride 2 on
    the other, each reading the one before. From C5 (stride 32), with two each, strides 8 to 128.
    """

    def __init__(self, *, embed_dim: int, num_upsampled: int = 2, num_downsampled: int = 2):
        super().__init__()
        self.upsample = nn.ModuleList(_convolution(embed_dim) for _ in range(num_upsampled))
        self.downsample = nn.ModuleList(_halving(embed_dim) for _ in range(num_downsampled))

    def strides(self, memory_strides: Sequence[int]) -> tuple[int, ...]:
        """Of the pyramid, in pixels. Raises ValueError unless the memory has one level that is coarse enough."""
        if len(memory_strides) != 1:
            raise ValueError(
                f"SingleScalePyramid is for an encoder of one level, got strides {list(memory_strides)}: set "
                "model.auxiliary_heads.adapter to a DownsampledPyramid"
            )
        (stride,) = memory_strides
        finest = stride // 2 ** len(self.upsample)
        if finest < 1:
            raise ValueError(f"num_upsampled: stride {stride} cannot be halved {len(self.upsample)} times")
        return tuple(finest * 2**i for i in range(len(self.upsample) + 1 + len(self.downsample)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map (B, D, h, w) -> the pyramid, highest resolution first."""
        (single,) = maps
        pyramid = [single]
        for convolution in self.upsample:
            finer = F.interpolate(pyramid[0], scale_factor=2, mode="bilinear", align_corners=False)
            pyramid.insert(0, convolution(finer))
        for convolution in self.downsample:
            pyramid.append(convolution(pyramid[-1]))
        return pyramid


def _convolution(channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution and GroupNorm, initialised as torch does (the authors' code)."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, stride=stride, padding=1), group_norm(channels))


def _halving(channels: int) -> nn.Sequential:
    return _convolution(channels, stride=2)
