import pytest
import torch
from torch import nn

from dinox.layers import FeedForward


def names_of(node, seen: set) -> set[str]:
    """Of all functions of an autograd graph."""
    if node is None or node in seen:
        return set()
    seen.add(node)
    return {node.name()}.union(*(names_of(earlier, seen) for earlier, _ in node.next_functions))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_any_leading_dimensions_give_what_the_formula_says(shape):
    torch.manual_seed(0)
    network, x = FeedForward(embed_dim=6, hidden_dim=9), torch.randn(shape)
    first, second = network.expand, network.contract
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(network(x), expected)


def test_gradients_of_the_hidden_layer_are_not_copied():
    """As they are where a view is changed in place; the second graph shows that this test would see it."""
    network, x = FeedForward(embed_dim=6, hidden_dim=9), torch.randn(2, 5, 6)
    copied = "torch::autograd::CopySlices"
    assert copied not in names_of(network(x).grad_fn, set())
    assert copied in names_of(nn.ReLU(inplace=True)(network.expand(x)).grad_fn, set())
