"""Maps of many strides from the last map of a plain vision transformer (Li et al. 2022, "ViTDet", section 3).

Outputs are named by stride: "p2" (stride 4), "p3", ...
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinox.modeling.backbone.maps import MapNorm, crop_to_stride

_LEAST_FACTOR = 4  # two transposed convolutions
_NORM_EPS = 1e-6  # Co-DETR's


class _PyramidOfOneMap(Backbone, ABC):
    """Wraps a backbone with one map; every level makes its own map of it."""

    def __init__(self, *, bottom_up: Backbone, embed_dim: int, strides: Sequence[int]):
        super().__init__()
        shapes = bottom_up.output_shape()
        if len(shapes) != 1:
            raise ValueError(f"bottom_up: expected a backbone with one map, got {', '.join(shapes)}")
        ((self.in_feature, shape),) = shapes.items()
        self._check_strides(strides, shape.stride)
        self.bottom_up = bottom_up
        self._out_feature_strides = {f"p{stride.bit_length() - 1}": stride for stride in sorted(strides)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, embed_dim)
        self.levels = nn.ModuleDict(
            {name: self._make_level(shape, stride, embed_dim) for name, stride in self._out_feature_strides.items()}
        )

    @property
    def num_levels(self) -> int:
        return len(self._out_features)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"p2": (B, D, H/4, W/4), ...}, sizes rounded up, highest resolution first."""
        features = self.bottom_up(images)[self.in_feature]
        return {
            name: crop_to_stride(level(features), images.shape[-2:], self._out_feature_strides[name])
            for name, level in self.levels.items()
        }

    @abstractmethod
    def _check_strides(self, strides: Sequence[int], stride_in: int) -> None: ...

    @abstractmethod
    def _make_level(self, shape: ShapeSpec, stride: int, embed_dim: int) -> nn.Sequential: ...


class SimpleFeaturePyramid(_PyramidOfOneMap):
    """ViTDet's: transposed convolutions make finer maps, max-pooling coarser ones.

    Each passes a 1x1 and a 3x3 convolution with LayerNorms.

    Args:
        bottom_up: gives one map; its stride is a power of two.
        embed_dim: channels of the outputs.
        strides: of the outputs: from a quarter of ``bottom_up``'s, each a power of two.
    """

    def __init__(self, *, bottom_up: Backbone, embed_dim: int = 256, strides: Sequence[int] = (4, 8, 16, 32)):
        super().__init__(bottom_up=bottom_up, embed_dim=embed_dim, strides=strides)

    def _check_strides(self, strides: Sequence[int], stride_in: int) -> None:
        unreachable = [s for s in strides if not _is_power_of_two(s) or s * _LEAST_FACTOR < stride_in]
        if unreachable or not _is_power_of_two(stride_in):
            least = stride_in // _LEAST_FACTOR
            raise ValueError(
                f"strides: expected powers of two from {least}, as the map of bottom_up has stride {stride_in} "
                f"(which has to be a power of two too), got {list(strides)}"
            )

    def _make_level(self, shape: ShapeSpec, stride: int, embed_dim: int) -> nn.Sequential:
        channels, stride_in = shape.channels, shape.stride
        resize: list[nn.Module] = []
        if stride > stride_in:
            factor = stride // stride_in
            resize.append(nn.MaxPool2d(factor, factor, ceil_mode=True))
        while stride < stride_in:
            if resize:
                resize += [MapNorm(channels), nn.GELU()]
            resize.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
            channels, stride = channels // 2, stride * 2
        return nn.Sequential(
            *resize,
            nn.Conv2d(channels, embed_dim, 1, bias=False),
            MapNorm(embed_dim),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
            MapNorm(embed_dim),
        )


class UpsampledFeaturePyramid(_PyramidOfOneMap):
    """Co-DETR's variant of the simple feature pyramid, as in its authors' code, without a neck behind it.

    Finer maps: for each step of 2, nearest neighbours and a 3x3 convolution to half of the channels. Coarser maps:
    max-pooling 3x3 with stride 2, and for each further step of 2 a 3x3 convolution with stride 2. Then come a 1x1 and
    a 3x3 convolution. A LayerNorm follows every convolution, and a GELU all but the last one.

    Args:
        bottom_up: gives one map; its stride is a power of two.
        embed_dim: channels of the outputs.
        num_levels: of them.
        finest_stride: of the first output; each further one has twice the stride of the one before.
    """

    def __init__(self, *, bottom_up: Backbone, embed_dim: int = 256, num_levels: int = 5, finest_stride: int = 4):
        if num_levels < 1:
            raise ValueError(f"num_levels: expected at least 1, got {num_levels}")
        strides = [finest_stride * 2**level for level in range(num_levels)]
        super().__init__(bottom_up=bottom_up, embed_dim=embed_dim, strides=strides)
        for module in self.levels.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def _check_strides(self, strides: Sequence[int], stride_in: int) -> None:
        if not _is_power_of_two(strides[0]) or not _is_power_of_two(stride_in):
            raise ValueError(
                f"finest_stride: expected a power of two, as the stride {stride_in} of bottom_up's map has to be, "
                f"got {strides[0]}"
            )

    def _make_level(self, shape: ShapeSpec, stride: int, embed_dim: int) -> nn.Sequential:
        channels, stride_in = shape.channels, shape.stride
        resize: list[nn.Module] = []
        while stride < stride_in:
            resize += [nn.Upsample(scale_factor=2), *_conv(channels, channels // 2, 3), nn.GELU()]
            channels, stride = channels // 2, stride * 2
        if stride > stride_in:
            resize.append(nn.MaxPool2d(3, stride=2, padding=1))
            stride_in *= 2
        while stride > stride_in:
            resize += [*_conv(channels, channels, 3, stride=2), nn.GELU()]
            stride_in *= 2
        return nn.Sequential(*resize, *_conv(channels, embed_dim, 1), nn.GELU(), *_conv(embed_dim, embed_dim, 3))


def _conv(channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return conv, MapNorm(out_channels, eps=_NORM_EPS)


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
