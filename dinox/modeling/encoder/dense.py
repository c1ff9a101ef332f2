"""Encoders in which every token attends to all tokens.

Legend: B images, S memory tokens, D channels.
"""

import dataclasses

from torch import Tensor, nn

from dinox.layers import MLP, Activation, EncoderLayer, MemoryAttention, RowColumnAttention, xavier_init
from dinox.modeling.encoder.layers import check_fusion, refine_layer_by_layer
from dinox.structures import Memory


class DenseEncoder(nn.Module):
    """DETR's encoder; padding is not attended to, and no norm follows the last layer.

    scaled_positions: in every layer, positions are multiplied by a function of the tokens (DAB-DETR's code). fusion: of
    the layers' tokens with earlier ones (Stable-DINO's memory fusion); None: there is none.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_layers: int = 6,
        num_heads: int = 8,
        feed_forward_dim: int = 2048,
        dropout: float = 0.0,
        activation: Activation = "relu",
        scaled_positions: bool = False,
        fusion: nn.Module | None = None,
    ):
        super().__init__()
        check_fusion(fusion, num_layers=num_layers, embed_dim=embed_dim)
        self.position_scale = None
        if scaled_positions:  # one for all layers
            self.position_scale = MLP(in_dim=embed_dim, hidden_dim=embed_dim, out_dim=embed_dim, num_layers=2)
            xavier_init(self.position_scale)
        self.layers = nn.ModuleList(
            EncoderLayer(
                self_attention=MemoryAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.fusion = fusion

    def forward(self, memory: Memory) -> Memory:
        return refine_layer_by_layer(
            memory, self.layers, lambda layer, now: layer(now, self._attend), fusion=self.fusion
        )

    def _attend(self, attention: nn.Module, memory: Memory) -> Tensor:
        if self.position_scale is not None:
            memory = dataclasses.replace(memory, positions=memory.positions * self.position_scale(memory.tokens))
        return attention(memory.tokens + memory.positions, memory)


class RowColumnEncoder(nn.Module):
    """Anchor DETR's encoder: every token attends along rows, then along columns. For one level.

    fusion: as in ``DenseEncoder``.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_layers: int = 6,
        num_heads: int = 8,
        feed_forward_dim: int = 1024,
        dropout: float = 0.0,
        fusion: nn.Module | None = None,
    ):
        super().__init__()
        check_fusion(fusion, num_layers=num_layers, embed_dim=embed_dim)
        self.layers = nn.ModuleList(
            EncoderLayer(
                self_attention=RowColumnAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.fusion = fusion

    def forward(self, memory: Memory) -> Memory:
        x_positions, y_positions = memory.positions.chunk(2, dim=-1)  # (B, S, D) each

        def attend(attention: nn.Module, now: Memory) -> Tensor:
            return attention(now.tokens + x_positions, now.tokens + y_positions, now)

        return refine_layer_by_layer(memory, self.layers, lambda layer, now: layer(now, attend), fusion=self.fusion)
