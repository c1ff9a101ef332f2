"""Pyramids from the one map of a plain vision transformer."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torch.nn import functional as F

from dinox.modeling import UpsampledFeaturePyramid


class OneMap(Backbone):
    """Gives the map that it is built with."""

    def __init__(self, features: torch.Tensor, stride: int):
        super().__init__()
        self.features = features
        self._out_features = ["last_feat"]
        self._out_feature_strides = {"last_feat": stride}
        self._out_feature_channels = {"last_feat": features.shape[1]}

    def forward(self, images):
        return {"last_feat": self.features}

    def output_shape(self):
        return {"last_feat": ShapeSpec(self.features.shape[1], stride=self._out_feature_strides["last_feat"])}


def make_pyramid(channels: int = 16, embed_dim: int = 8, **options) -> UpsampledFeaturePyramid:
    torch.manual_seed(0)
    return UpsampledFeaturePyramid(
        bottom_up=OneMap(torch.randn(1, channels, 4, 6), options.pop("stride", 16)), embed_dim=embed_dim, **options
    )


def test_convolutions_are_those_of_co_detrs_release():
    with torch.device("meta"):
        pyramid = make_pyramid(channels=1024, embed_dim=256)
    shapes = {
        name: [tuple(m.weight.shape) for m in level if isinstance(m, nn.Conv2d)]
        for name, level in pyramid.levels.items()
    }
    end = (256, 256, 3, 3)
    assert shapes == {
        "p2": [(512, 1024, 3, 3), (256, 512, 3, 3), (256, 256, 1, 1), end],
        "p3": [(512, 1024, 3, 3), (256, 512, 1, 1), end],
        "p4": [(256, 1024, 1, 1), end],
        "p5": [(256, 1024, 1, 1), end],
        "p6": [(1024, 1024, 3, 3), (256, 1024, 1, 1), end],
    }
    assert all(m.bias is None for m in pyramid.levels.modules() if isinstance(m, nn.Conv2d))


def test_maps_are_those_of_a_computation_by_hand():
    pyramid = make_pyramid()
    for parameter in pyramid.parameters():
        parameter.data.normal_()
    features = pyramid.bottom_up.features

    def conv(x, name, number, *, stride=1):
        """The convolution at this place and the norm behind it."""
        weight, norm = pyramid.levels[name][number].weight, pyramid.levels[name][number + 1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    doubled = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3 = conv(F.gelu(conv(F.gelu(conv(doubled, "p3", 1)), "p3", 4)), "p3", 7)
    pooled = F.max_pool2d(F.pad(features, (1, 1, 1, 1), value=-torch.inf), 3, 2)
    p6 = conv(F.gelu(conv(F.gelu(conv(pooled, "p6", 1, stride=2)), "p6", 4)), "p6", 7)
    found = pyramid(torch.zeros(1, 3, 64, 96))
    # The same operations in another order of sums.
    torch.testing.assert_close(found["p3"], p3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["p6"], p6, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"finest_stride": 6}, "finest_stride: expected a power of two, .*got 6"),
        ({"stride": 14}, "finest_stride: expected a power of two, as the stride 14 of bottom_up's map has to be"),
        ({"num_levels": 0}, "num_levels: expected at least 1, got 0"),
    ],
)
def test_levels_that_cannot_be_made_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make_pyramid(**options)
