"""From the memory to the pyramid of the auxiliary heads."""

import pytest
import torch
from torch.nn import functional as F

from dinox.modeling import DownsampledPyramid, SingleScalePyramid
from dinox.modeling.auxiliary.pyramid import level_maps

from ...small_models import make_memory


def test_tokens_become_maps_again():
    maps = [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)]
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
    found = level_maps(make_memory(tokens, [(4, 6), (2, 3)]))
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))


def test_one_level_is_added_to_several():
    adapter = DownsampledPyramid(embed_dim=64)
    maps = [torch.randn(1, 64, 8, 10), torch.randn(1, 64, 4, 5)]
    pyramid = adapter(maps)
    assert pyramid[:2] == maps  # the encoder's own, untouched
    conv, norm = adapter.downsample
    expected = F.group_norm(F.conv2d(maps[1], conv.weight, conv.bias, stride=2, padding=1), 32, norm.weight, norm.bias)
    assert torch.equal(pyramid[2], expected)
    assert pyramid[2].shape[2:] == (2, 3)
    assert adapter.strides((8, 16)) == (8, 16, 32)


@pytest.mark.parametrize(
    ("stride", "options", "strides"),
    [
        (32, {}, (8, 16, 32, 64, 128)),
        (16, {"num_upsampled": 1, "num_downsampled": 3}, (8, 16, 32, 64, 128)),  # DC5
        (32, {"num_upsampled": 0, "num_downsampled": 1}, (32, 64)),
    ],
)
def test_a_single_level_becomes_a_pyramid(stride, options, strides):
    adapter = SingleScalePyramid(embed_dim=16, **options)
    assert adapter.strides([stride]) == strides
    pyramid = adapter([torch.randn(1, 16, 256 // stride, 384 // stride)])
    assert [tuple(m.shape[2:]) for m in pyramid] == [(256 // s, 384 // s) for s in strides]


def test_upsampling_is_bilinear_and_each_level_reads_the_one_before():
    adapter = SingleScalePyramid(embed_dim=16, num_upsampled=2, num_downsampled=0)
    single = torch.randn(1, 16, 3, 4)
    finest, middle, same = adapter([single])
    assert same is single
    doubled = F.interpolate(single, size=(6, 8), mode="bilinear", align_corners=False)
    assert torch.equal(middle, adapter.upsample[0](doubled))
    doubled = F.interpolate(middle, size=(12, 16), mode="bilinear", align_corners=False)
    assert torch.equal(finest, adapter.upsample[1](doubled))


def test_levels_that_do_not_fit_are_rejected():
    with pytest.raises(ValueError, match=r"one level, got strides \[8, 16\].*DownsampledPyramid"):
        SingleScalePyramid(embed_dim=16).strides((8, 16))
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        SingleScalePyramid(embed_dim=16).strides((2,))
