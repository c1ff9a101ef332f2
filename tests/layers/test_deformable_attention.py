import pytest
import torch

from dinox.layers import DeformableAttention

from ..small_models import make_memory

SHAPES = [(4, 6), (2, 3)]


def make_module() -> DeformableAttention:
    torch.manual_seed(0)
    module = DeformableAttention(embed_dim=8, num_heads=2, num_levels=2, num_points=3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_padding_contributes_nothing():
    module, query = make_module(), torch.randn(1, 5, 8)
    references, tokens = torch.rand(1, 5, 2, 2), torch.randn(1, 30, 8)
    memory = make_memory(tokens, SHAPES, [[(3, 6), (2, 2)]])
    before = module(query, references, memory)
    tokens[memory.padding_mask] = 1e6
    assert torch.equal(before, module(query, references, memory.with_tokens(tokens)))


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="divisible by num_heads, got 10 and 4"):
        DeformableAttention(embed_dim=10, num_heads=4, num_levels=1, num_points=1)
