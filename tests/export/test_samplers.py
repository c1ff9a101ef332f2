import pytest
import torch

from dinox.export import gather_sampler, grid_sampler
from dinox.ops import ms_deform_attn

SHAPES = [(5, 7), (3, 4), (1, 1)]


@pytest.mark.parametrize("sampler", [grid_sampler, gather_sampler])
def test_samplers_compute_what_the_operator_computes_inside_and_outside_of_the_levels(sampler):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 3, 4, generator=generator)
    locations = torch.rand(2, 11, 3, len(SHAPES), 2, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(2, 11, 3, len(SHAPES), 2, generator=generator)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    torch.testing.assert_close(sampler(value, SHAPES, locations, weights), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", [grid_sampler, gather_sampler])
def test_locations_far_outside_contribute_nothing(sampler):
    value, weights = torch.ones(1, 36, 1, 1), torch.ones(1, 1, 1, 1, 2)
    locations = torch.tensor([[50.0, 0.5], [0.5, -50.0]]).reshape(1, 1, 1, 1, 2, 2)
    assert sampler(value, [(6, 6)], locations, weights).item() == 0
