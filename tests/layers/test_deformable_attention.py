import pytest
import torch

from dinox.layers import DeformableAttention
from dinox.layers.deformable_attention import sampling_locations

from ..small_models import make_memory

SHAPES = [(4, 6), (2, 3)]
LEVEL_SIZES = torch.tensor([[6.0, 4.0], [3.0, 2.0]])  # width, height


def make_module() -> DeformableAttention:
    torch.manual_seed(0)
    module = DeformableAttention(embed_dim=8, num_heads=2, num_levels=2, num_points=3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_offsets_count_cells_for_points_and_half_sizes_for_boxes():
    offsets = torch.ones(1, 1, 1, 2, 3, 2)
    at_points = sampling_locations(torch.full((1, 1, 2, 2), 0.5), offsets, LEVEL_SIZES)
    torch.testing.assert_close(at_points[0, 0, 0, :, 0], torch.tensor([[0.5 + 1 / 6, 0.75], [0.5 + 1 / 3, 1.0]]))
    boxes = torch.tensor([0.5, 0.5, 0.6, 0.3]).expand(1, 1, 2, 4)
    at_boxes = sampling_locations(boxes, offsets, LEVEL_SIZES)
    torch.testing.assert_close(at_boxes[0, 0, 0, 0, 0], torch.tensor([0.5 + 0.3 / 3, 0.5 + 0.15 / 3]))


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
