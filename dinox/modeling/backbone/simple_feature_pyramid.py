"""Maps of many strides from the last map of a plain vision transformer (Li et al. 2022, "ViTDet", section 3)."""

from collections.abc import Sequence

from detectron2.modeling import Backbone
from torch import Tensor, nn

from dinox.modeling.backbone.maps import MapNorm, crop_to_stride

_LEAST_FACTOR = 4  # two transposed convolutions


class SimpleFeaturePyramid(Backbone):
    """Wraps a backbone with one map: transposed convolutions make finer maps of it, max-pooling coarser ones.

    Each passes a 1x1 and a 3x3 convolution with LayerNorms. Outputs are named by stride: "p2" (stride 4), "p3", ...

    Args:
        bottom_up: gives one map; its stride is a power of two.
        embed_dim: channels of the outputs.
        strides: of the outputs: from a quarter of ``bottom_up``'s, each a power of two. Co-DETR's are 4 to 64.
    """

    def __init__(self, *, bottom_up: Backbone, embed_dim: int = 256, strides: Sequence[int] = (4, 8, 16, 32)):
        super().__init__()
        shapes = bottom_up.output_shape()
        if len(shapes) != 1:
            raise ValueError(f"bottom_up: expected a backbone with one map, got {', '.join(shapes)}")
        ((self.in_feature, shape),) = shapes.items()
        unreachable = [s for s in strides if not _is_power_of_two(s) or s * _LEAST_FACTOR < shape.stride]
        if unreachable or not _is_power_of_two(shape.stride):
            least = shape.stride // _LEAST_FACTOR
            raise ValueError(
                f"strides: expected powers of two from {least}, as the map of bottom_up has stride {shape.stride} "
                f"(which has to be a power of two too), got {list(strides)}"
            )
        self.bottom_up = bottom_up
        self._out_feature_strides = {f"p{stride.bit_length() - 1}": stride for stride in sorted(strides)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, embed_dim)
        self.levels = nn.ModuleDict(
            {
                name: _make_level(shape.channels, shape.stride, stride, embed_dim)
                for name, stride in self._out_feature_strides.items()
            }
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


def _make_level(channels: int, stride_in: int, stride_out: int, embed_dim: int) -> nn.Sequential:
    resize: list[nn.Module] = []
    if stride_out > stride_in:
        factor = stride_out // stride_in
        resize.append(nn.MaxPool2d(factor, factor, ceil_mode=True))
    while stride_out < stride_in:
        if resize:
            resize += [MapNorm(channels), nn.GELU()]
        resize.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels, stride_out = channels // 2, stride_out * 2
    return nn.Sequential(
        *resize,
        nn.Conv2d(channels, embed_dim, 1, bias=False),
        MapNorm(embed_dim),
        nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
        MapNorm(embed_dim),
    )


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
