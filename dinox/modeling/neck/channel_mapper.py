"""From a backbone's maps to equally wide maps on more levels."""

from collections.abc import Sequence
from typing import Literal, get_args

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinox.layers import group_norm

Norm = Literal["GN", ""]


class _ConvNorm(nn.Module):
    """Convolution and, if wanted, GroupNorm; no activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, norm: Norm):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.norm = group_norm(out_channels) if norm == "GN" else nn.Identity()
        if norm == "GN":  # Deformable DETR's; DETR leaves torch's initialisation
            nn.init.xavier_uniform_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ChannelMapper(Backbone):
    """Wraps a backbone, as detectron2's FPN does, and gives ``num_levels`` maps of ``embed_dim`` channels.

    Every map of ``bottom_up`` passes a 1x1 convolution. Missing levels come from 3x3 convolutions of stride 2: the
    first reads the last map of ``bottom_up`` itself, later ones the previous extra level (Deformable DETR, A.2; DINO,
    appendix D.3). Outputs are named by stride: p2 (stride 4), p3, ...
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        embed_dim: int,
        num_levels: int,
        in_features: Sequence[str] | None = None,
        norm: Norm = "GN",
    ):
        """in_features: maps of ``bottom_up`` to use; all by default. norm: "" in DETR and its first relatives."""
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(map(repr, get_args(Norm)))}, got {norm!r}")
        self.bottom_up = bottom_up
        shapes = bottom_up.output_shape()
        self.in_features = sorted(in_features or shapes, key=lambda name: shapes[name].stride)
        num_extra = num_levels - len(self.in_features)
        if num_extra < 0:
            raise ValueError(
                f"num_levels = {num_levels}, but the backbone gives {len(self.in_features)} maps: {shapes}"
            )
        channels = [shapes[name].channels for name in self.in_features]
        extra_inputs = [channels[-1]] + [embed_dim] * (num_extra - 1)
        self.convs = nn.ModuleList(_ConvNorm(c, embed_dim, 1, norm=norm) for c in channels)
        self.extra_convs = nn.ModuleList(
            _ConvNorm(c, embed_dim, 3, stride=2, norm=norm) for c in extra_inputs[:num_extra]
        )

        strides = [shapes[name].stride for name in self.in_features]
        strides += [strides[-1] * 2 ** (i + 1) for i in range(num_extra)]
        self.num_levels = num_levels
        self._out_feature_strides = {f"p{stride.bit_length() - 1}": stride for stride in strides}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, embed_dim)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"p3": (B, D, H/8, W/8), ...}, sizes rounded up, highest resolution first."""
        features = self.bottom_up(images)
        maps = [conv(features[name]) for conv, name in zip(self.convs, self.in_features, strict=True)]
        last = features[self.in_features[-1]]
        for conv in self.extra_convs:
            last = conv(last)
            maps.append(last)
        return dict(zip(self._out_features, maps, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
