"""Memory fusion: the encoder's layers joined with its input, the backbone's features (Stable-DINO, section 3).

| fusion | figure 4 | what is joined |
|---|---|---|
| ``SimpleFusion`` | (b) | the last layer's tokens with the input |
| ``ULikeFusion`` | (c) | late layers' tokens with early ones', as in a U-Net |
| ``DenseFusion`` | (d), the paper's choice | the tokens of all layers and the input |

A fusion is called after every layer, with the tokens so far (see ``layers.py``), and has no mask: padded tokens are
fused with each other, and nobody attends to them. Encoders of your own call it likewise::

    fusion = DenseFusion(embed_dim=256, num_layers=len(layers))
    history = [tokens]  # before positional terms
    for layer in layers:
        tokens = layer(tokens)
        history.append(tokens)
        tokens = fusion(history)

Legend: B images, S memory tokens, D channels, L layers; x0 the encoder's input, xi what layer i of 1 .. L gave.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinox.layers import xavier_init


class _Join(nn.Module):
    """Tokens beside each other, projected back to D channels; then a norm, or None."""

    def __init__(self, *, embed_dim: int, num_inputs: int, norm: nn.Module | None):
        super().__init__()
        self.projection = nn.Linear(num_inputs * embed_dim, embed_dim)
        self.norm = norm
        xavier_init(self.projection)  # as the whole transformer
        nn.init.zeros_(self.projection.bias)

    def join(self, tokens: Sequence[Tensor]) -> Tensor:
        """num_inputs x (B, S, D) -> (B, S, D)."""
        joined = self.projection(torch.cat(list(tokens), dim=-1))
        return joined if self.norm is None else self.norm(joined)


class SimpleFusion(_Join):
    """xL and x0, once, after the last layer (figure 4 b).

    norm: after the projection, such as ``nn.LayerNorm(embed_dim)``; None: there is none.
    """

    def __init__(self, *, embed_dim: int, num_layers: int, norm: nn.Module | None = None):
        super().__init__(embed_dim=embed_dim, num_inputs=2, norm=norm)
        self.embed_dim, self.num_layers = embed_dim, _at_least_one(num_layers)

    def forward(self, history: Sequence[Tensor]) -> Tensor:
        """history: [x0, ..., xi], (B, S, D) each -> the tokens that go on, (B, S, D)."""
        if len(history) <= self.num_layers:
            return history[-1]
        return self.join([history[-1], history[0]])


class DenseFusion(_Join):
    """x0, x1, ..., xL, once, after the last layer, with a layer norm (figure 4 d)."""

    def __init__(self, *, embed_dim: int, num_layers: int):
        super().__init__(embed_dim=embed_dim, num_inputs=_at_least_one(num_layers) + 1, norm=nn.LayerNorm(embed_dim))
        self.embed_dim, self.num_layers = embed_dim, num_layers

    def forward(self, history: Sequence[Tensor]) -> Tensor:
        """history: [x0, ..., xi], (B, S, D) each -> the tokens that go on, (B, S, D)."""
        return history[-1] if len(history) <= self.num_layers else self.join(history)


class ULikeFusion(nn.Module):
    """xi joins what layer L - i gives, before layer L - i + 1, for every i < L / 2 (figure 4 c).

    The paper draws it without a formula: that each join is a projection with a layer norm, as in the dense fusion, is
    our reading.
    """

    def __init__(self, *, embed_dim: int, num_layers: int):
        super().__init__()
        self.embed_dim, self.num_layers = embed_dim, _at_least_one(num_layers)
        self.joins = nn.ModuleList(  # by i
            _Join(embed_dim=embed_dim, num_inputs=2, norm=nn.LayerNorm(embed_dim)) for _ in range((num_layers + 1) // 2)
        )

    def forward(self, history: Sequence[Tensor]) -> Tensor:
        """history: [x0, ..., xi], (B, S, D) each -> the tokens that go on, (B, S, D)."""
        skipped = self.num_layers - (len(history) - 1)  # i of the earlier tokens
        if skipped >= len(self.joins):
            return history[-1]
        return self.joins[skipped].join([history[-1], history[skipped]])


def _at_least_one(num_layers: int) -> int:
    if num_layers < 1:
        raise ValueError(
            f"num_layers: there is nothing to fuse in an encoder of {num_layers} layers, give it at least 1"
        )
    return num_layers
