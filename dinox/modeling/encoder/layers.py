"""What all encoders have in common: the memory's way through the layers, and where what they give is fused.

Legend: B images, S memory tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from dinox.structures import Memory

Fusion = Callable[[Sequence[Tensor]], Tensor]
"""From the tokens so far, [x0, x1, ..., xi] of (B, S, D), to those that go on, (B, S, D); called after every layer. x0
is the encoder's input, and x1 to xi are what the layers gave, before any fusion.
"""


def refine_layer_by_layer(
    memory: Memory,
    layers: Iterable[nn.Module],
    refine: Callable[[nn.Module, Memory], Memory],
    *,
    fusion: Fusion | None = None,
) -> Memory:
    """``refine(layer, memory)`` -> memory. ``fusion``: of every layer's tokens with earlier ones (see ``fusion.py``).

    Without a fusion no earlier tokens are kept.
    """
    history = [] if fusion is None else [memory.tokens]
    for layer in layers:
        memory = refine(layer, memory)
        if fusion is not None:
            history.append(memory.tokens)
            memory = memory.with_tokens(fusion(history))
    return memory


def check_fusion(fusion: nn.Module | None, *, num_layers: int, embed_dim: int) -> None:
    """Raise ValueError if the fusion was made for another encoder: it would never see its last layer, or fail there."""
    for name, wanted in (("num_layers", num_layers), ("embed_dim", embed_dim)):
        got = getattr(fusion, name, wanted)
        if got != wanted:
            raise ValueError(
                f"fusion: made for an encoder of {name} = {got}, but this one has {wanted}: give both the same {name}"
            )
