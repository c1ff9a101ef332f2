"""Attention that tokens of the memory get, against its definition."""

import pytest
import torch
from torch import nn

from dinox.analysis.collaboration import watch_cross_attention
from dinox.layers import ConditionalCrossAttention, DeformableAttention, MemoryAttention, RowColumnAttention

from ...small_models import make_memory

DIM, HEADS, QUERIES = 8, 2, 3
SHAPES = ((3, 4), (2, 2))


def memory_of(shapes, *, double_positions: bool = False):
    generator = torch.Generator().manual_seed(0)
    count = sum(h * w for h, w in shapes)
    memory = make_memory(torch.randn(1, count, DIM, generator=generator), shapes)
    width = 2 * DIM if double_positions else DIM
    positions = torch.randn(1, count, width, generator=generator)
    return type(memory)(**{**vars(memory), "positions": positions})


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return module.eval()


def queries(seed: int = 2) -> torch.Tensor:
    return torch.randn(1, QUERIES, DIM, generator=torch.Generator().manual_seed(seed))


def deformable(shapes=SHAPES):
    module = randomised(DeformableAttention(embed_dim=DIM, num_heads=HEADS, num_levels=len(shapes), num_points=2))
    references = torch.rand(1, QUERIES, len(shapes), 2, generator=torch.Generator().manual_seed(3))
    return module, (queries(), references, memory_of(shapes)), (module.value_proj, module.output_proj)


def conditional(num_levels: int):
    module = randomised(
        ConditionalCrossAttention(
            embed_dim=DIM, num_heads=HEADS, positions_in_content=True, num_levels=num_levels, dropout=0.0
        )
    )
    level_query = queries(6) if num_levels > 1 else None
    inputs = (queries(), queries(4), queries(5), memory_of(SHAPES), level_query)
    return module, inputs, (module.value, module.output)


@pytest.mark.parametrize(
    "make", [deformable, lambda: conditional(1), lambda: conditional(2)], ids=["deformable", "conditional", "levels"]
)
def test_the_attention_of_a_token_is_what_a_value_of_one_there_and_zero_elsewhere_gives(make):
    module, inputs, (value, output) = make()
    with watch_cross_attention(module) as layers:
        module(*inputs)
    assert len(layers) == 1
    chosen = torch.tensor([0, 2])
    received = layers[0](chosen)
    num_tokens = inputs[-1 if make is deformable else 3].tokens.shape[1]
    assert received.shape == (num_tokens,)
    seen = []
    output.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    for token in range(num_tokens):
        one = torch.zeros(1, num_tokens, DIM)
        one[0, token] = 1
        handle = value.register_forward_hook(lambda *_, one=one: one)
        with torch.no_grad():
            module(*inputs)
        handle.remove()
        torch.testing.assert_close(received[token], seen[-1][0, chosen].mean())


def test_half_way_between_two_cells_each_of_them_gets_half():
    module = DeformableAttention(embed_dim=DIM, num_heads=HEADS, num_levels=1, num_points=1).eval()
    nn.init.zeros_(module.sampling_offsets.bias)
    references = torch.tensor([[0.25, 0.25], [0.5, 0.75]])[None, :, None]  # of 2 x 2 cells
    with watch_cross_attention(module) as layers:
        module(torch.zeros(1, 2, DIM), references, memory_of(((2, 2),)))
    torch.testing.assert_close(layers[0](torch.tensor([0])), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(layers[0](torch.tensor([1])), torch.tensor([0.0, 0.0, 0.5, 0.5]))
    torch.testing.assert_close(layers[0](torch.tensor([0, 1])), torch.tensor([0.5, 0.0, 0.25, 0.25]))


def test_dense_attention_is_torchs_own_and_its_output_stays():
    module, memory = randomised(MemoryAttention(embed_dim=DIM, num_heads=HEADS)), memory_of(SHAPES)
    with watch_cross_attention(module) as layers:
        watched = module(queries(), memory)
    torch.testing.assert_close(watched, module(queries(), memory))
    keys = memory.tokens + memory.positions
    _, weights = module.attention(queries(), keys, memory.tokens, average_attn_weights=False)  # (1, H, N, S)
    torch.testing.assert_close(layers[0](torch.tensor([1])), weights[0, :, 1].mean(0))


def test_row_column_attention_is_a_product_that_adds_up_to_one():
    shape = (3, 4)
    module = randomised(RowColumnAttention(embed_dim=DIM, num_heads=HEADS))
    weights = {}
    module.x_weights.register_forward_hook(lambda *arguments: weights.update(x=arguments[-1][0]))
    module.y_weights.register_forward_hook(lambda *arguments: weights.update(y=arguments[-1][0]))
    with watch_cross_attention(module) as layers:
        module(queries(), queries(4), memory_of((shape,), double_positions=True))
    received = layers[0](torch.tensor([0, 1])).view(shape)
    assert received.sum() == pytest.approx(1, abs=1e-6)
    expected = sum(weights["y"][h, n, 2] * weights["x"][h, n, 1] for h in range(HEADS) for n in (0, 1)) / (2 * HEADS)
    torch.testing.assert_close(received[2, 1], expected)


def test_nothing_is_watched_afterwards():
    module, inputs, _ = deformable()
    with watch_cross_attention(module) as layers:
        pass
    module(*inputs)
    assert layers == []
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
