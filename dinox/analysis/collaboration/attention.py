"""What the decoder's queries look at in the memory, whatever kind of attention it has.

Legend: N queries, S memory tokens, D channels, H heads. All of one image (a batch of 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dinox.layers import ConditionalCrossAttention, DeformableAttention, MemoryAttention, RowColumnAttention

Attention = Callable[[Tensor], Tensor]
"""Queries (n,) of a layer -> (S,) the attention that each token gets from them: the weights' mean over heads and these
queries. Has to be called while the graph of the forward pass is there."""


@contextmanager
def watch_cross_attention(decoder: nn.Module) -> Iterator[list[Attention]]:
    """A list that a forward pass of the decoder inside fills: one entry per layer with attention to the memory.

    The pass needs gradients enabled (not those of parameters). It computes the same as ever: nothing is replaced.
    """
    found: list[Attention] = []
    with ExitStack() as handles:
        for module in decoder.modules():
            for kind, watch in _WATCH.items():
                if isinstance(module, kind):
                    for handle in watch(module, found):
                        handles.callback(handle.remove)
        yield found


def _watch_weighted_sum(values: nn.Module, output: nn.Module, found: list[Attention]) -> list[Any]:
    """Attention is a weighted sum of values, so that its weights are the gradient of the sum: also where samples lie
    between tokens, and are never stored as weights of tokens.

    values: the projection that makes the values (1, S, D). output: the one that reads the weighted sums (1, N, D).
    """
    last: list[Tensor] = []

    def keep_values(_module: nn.Module, _inputs: tuple, projected: Tensor) -> None:
        last[:] = [projected]

    def record(_module: nn.Module, inputs: tuple) -> None:
        (summed,), (projected,) = inputs, last

        def attention(queries: Tensor) -> Tensor:
            total = summed[0, queries].mean(0).sum()
            (weights,) = torch.autograd.grad(total, projected, retain_graph=True)  # (1, S, D): its head's, per channel
            return weights[0].mean(-1)

        found.append(attention)

    return [values.register_forward_hook(keep_values), output.register_forward_pre_hook(record)]


def _watch_weights(module: MemoryAttention, found: list[Attention]) -> list[Any]:
    """torch's own module gives them on request: (1, N, S), the mean over heads."""

    def ask(_module: nn.Module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        return inputs, {**options, "need_weights": True}

    def record(_module: nn.Module, _inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        weights = outputs[1].detach()[0]
        found.append(lambda queries: weights[queries].mean(0))

    attention = module.attention
    return [attention.register_forward_pre_hook(ask, with_kwargs=True), attention.register_forward_hook(record)]


def _watch_axes(module: RowColumnAttention, found: list[Attention]) -> list[Any]:
    """The weight of a cell is that of its row times that of its column: (1, H, N, h) and (1, H, N, w)."""
    last: list[Tensor] = []

    def keep_columns(_module: nn.Module, _inputs: tuple, weights: Tensor) -> None:
        last[:] = [weights.detach()[0]]

    def record(_module: nn.Module, _inputs: tuple, weights: Tensor) -> None:
        rows, (columns,) = weights.detach()[0], last

        def attention(queries: Tensor) -> Tensor:
            both = torch.einsum("hny,hnx->yx", rows[:, queries], columns[:, queries])
            return both.flatten() / (len(rows) * len(queries))

        found.append(attention)

    return [module.x_weights.register_forward_hook(keep_columns), module.y_weights.register_forward_hook(record)]


_WATCH: dict[type[nn.Module], Callable[[Any, list[Attention]], list[Any]]] = {
    DeformableAttention: lambda module, found: _watch_weighted_sum(module.value_proj, module.output_proj, found),
    ConditionalCrossAttention: lambda module, found: _watch_weighted_sum(module.value, module.output, found),
    MemoryAttention: _watch_weights,
    RowColumnAttention: _watch_axes,
}
