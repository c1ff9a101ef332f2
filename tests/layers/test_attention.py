"""Attention layers against what they stand for, written out."""

import math

import pytest
import torch

from dinox.layers import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    MemoryAttention,
    RowColumnAttention,
    RowColumnPositions,
)

from ..small_models import make_memory

D, HEADS = 16, 4
CLOSE = {"atol": 1e-5, "rtol": 0}  # sums of some hundred float32 products, in another order


def split(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, H, N, D / H)


def softmax_attention(query, key, value, scale):
    weights = (query @ key.transpose(-1, -2) * scale).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def padded_memory(shapes=((3, 4),), valid=((2, 3), (3, 4))):
    """Two images, the first of which fills only a part of each level."""
    torch.manual_seed(0)
    tokens = torch.randn(2, sum(h * w for h, w in shapes), D)
    sizes = [[(min(h, v[0]), min(w, v[1])) for h, w in shapes] for v in valid]
    memory = make_memory(tokens, shapes, sizes)
    return memory.__class__(**{**vars(memory), "positions": torch.randn_like(tokens)})


def test_conditional_self_attention_adds_projections_of_content_and_position():
    torch.manual_seed(1)
    layer = ConditionalSelfAttention(embed_dim=D, num_heads=HEADS)
    content, positions = torch.randn(2, 2, 5, D)
    query = split(layer.content_query(content) + layer.position_query(positions))
    key = split(layer.content_key(content) + layer.position_key(positions))
    expected = layer.output(softmax_attention(query, key, split(layer.value(content)), 1 / math.sqrt(D / HEADS)))
    torch.testing.assert_close(layer(content, positions, None), expected, **CLOSE)


@pytest.mark.parametrize("first", [True, False])
def test_conditional_cross_attention_compares_content_with_content_and_place_with_place(first):
    """Scores are the sum of the two products, scaled by the root of twice a head's width."""
    torch.manual_seed(1)
    layer = ConditionalCrossAttention(embed_dim=D, num_heads=HEADS, positions_in_content=first, mask_memory=False)
    memory = padded_memory()
    content, positions, places = torch.randn(3, 2, 5, D)
    query, key = layer.content_query(content), layer.content_key(memory.tokens)
    if first:
        query = query + layer.position_query(positions)
        key = key + layer.position_key(memory.positions)
    by_content = split(query) @ split(key).transpose(-1, -2)
    by_place = split(layer.place_query(places)) @ split(layer.position_key(memory.positions)).transpose(-1, -2)
    weights = ((by_content + by_place) / math.sqrt(2 * D / HEADS)).softmax(-1)
    expected = layer.output((weights @ split(layer.value(memory.tokens))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(content, positions, places, memory), expected, **CLOSE)


def test_several_levels_are_attended_to_apart_and_mixed_by_the_querys_weights():
    torch.manual_seed(1)
    shapes = ((3, 4), (2, 2))
    layer = ConditionalCrossAttention(embed_dim=D, num_heads=HEADS, positions_in_content=False, num_levels=2)
    memory = padded_memory(shapes, valid=((3, 4), (3, 4)))
    content, positions, places, level_query = torch.randn(4, 2, 5, D)
    single = ConditionalCrossAttention(embed_dim=D, num_heads=HEADS, positions_in_content=False)
    single.load_state_dict({k: v for k, v in layer.state_dict().items() if "level" not in k})
    expected = 0
    weights = layer.level_weights(level_query).softmax(-1)
    for level, (tokens, places_of_level) in enumerate(
        zip(memory.tokens.split([12, 4], 1), memory.positions.split([12, 4], 1), strict=True)
    ):
        alone = make_memory(tokens, shapes[level : level + 1])
        alone = alone.__class__(**{**vars(alone), "positions": places_of_level})
        expected = expected + weights[..., level, None] * single(content, positions, places, alone)
    torch.testing.assert_close(layer(content, positions, places, memory, level_query), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["memory", "conditional", "row and column"])
def test_padding_is_not_attended_to(kind):
    torch.manual_seed(1)
    memory = padded_memory()
    query = torch.randn(2, 5, D)
    if kind == "memory":
        attention = MemoryAttention(embed_dim=D, num_heads=HEADS)
    elif kind == "conditional":
        layer = ConditionalCrossAttention(embed_dim=D, num_heads=HEADS, positions_in_content=True)

        def attention(query, memory):
            return layer(query, query, query, memory)
    else:
        memory = memory.__class__(**{**vars(memory), "positions": torch.randn(2, 12, 2 * D)})
        layer = RowColumnAttention(embed_dim=D, num_heads=HEADS)

        def attention(query, memory):
            return layer(query, -query, memory)

    before = attention(query, memory)
    noise = torch.randn_like(memory.tokens) * memory.padding_mask[..., None]
    after = attention(query, memory.with_tokens(memory.tokens + noise))
    torch.testing.assert_close(after, before, **CLOSE)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_row_column_attention_weighs_a_cell_by_its_column_and_its_row(shape):
    torch.manual_seed(1)
    h, w = shape
    layer = RowColumnAttention(embed_dim=D, num_heads=HEADS).double()
    memory = make_memory(torch.randn(1, h * w, D, dtype=torch.float64), [shape])
    positions = torch.randn(1, h * w, 2 * D, dtype=torch.float64)
    memory = memory.__class__(**{**vars(memory), "positions": positions})
    x_query, y_query = torch.randn(2, 1, 4, D, dtype=torch.float64)
    project = [
        lambda x, W=W, b=b: x @ W.T + b
        for W, b in zip(layer.in_proj_weight.chunk(5), layer.in_proj_bias.chunk(5), strict=True)
    ]
    tokens = memory.tokens.unflatten(1, shape)
    x_positions, y_positions = positions.unflatten(1, shape).chunk(2, -1)
    width = D // HEADS
    expected = torch.zeros(1, 4, D, dtype=torch.float64)
    for n in range(4):
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            qx, qy = project[0](x_query)[0, n, part], project[1](y_query)[0, n, part]
            kx = project[2](tokens + x_positions)[0].mean(0)[:, part]  # (w, D / H): over the cells of a column
            ky = project[3](tokens + y_positions)[0].mean(1)[:, part]
            ax, ay = (kx @ qx / math.sqrt(width)).softmax(0), (ky @ qy / math.sqrt(width)).softmax(0)
            expected[0, n, part] = torch.einsum("y,x,yxc->c", ay, ax, project[4](tokens)[0, ..., part])
    torch.testing.assert_close(layer(x_query, y_query, memory), layer.output(expected), atol=1e-12, rtol=0)


def test_points_and_cells_share_one_embedding():
    """The centre of cell (row 1, column 2) of a 2 x 4 map lies at x = 2.5 / 4, y = 1.5 / 2."""
    layer = RowColumnPositions(embed_dim=D)
    cells = layer(torch.zeros(1, 2, 4, dtype=torch.bool))
    point = layer.embed_points(torch.tensor([[2.5 / 4, 1.5 / 2]]))
    torch.testing.assert_close(cells[0, :, 1, 2], point[0], **CLOSE)
