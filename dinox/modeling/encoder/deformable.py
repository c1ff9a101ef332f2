"""Deformable encoder (Deformable DETR, section 4.1).

Legend: B images, S memory tokens, L levels, D channels.
"""

from torch import Tensor, nn

from dinox.layers import Activation, DeformableAttention, EncoderLayer
from dinox.modeling.encoder.layers import check_fusion, refine_layer_by_layer
from dinox.structures import Memory


class DeformableEncoder(nn.Module):
    """Refines every token by attending around its own place on all levels. No norm after the last layer.

    fusion: of the layers' tokens with earlier ones (Stable-DINO's memory fusion); None: there is none.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_levels: int,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feed_forward_dim: int = 2048,
        dropout: float = 0.0,
        activation: Activation = "relu",
        fusion: nn.Module | None = None,
    ):
        super().__init__()
        check_fusion(fusion, num_layers=num_layers, embed_dim=embed_dim)
        self.layers = nn.ModuleList(
            EncoderLayer(
                self_attention=DeformableAttention(
                    embed_dim=embed_dim,
                    num_heads=num_heads,
                    num_levels=num_levels,
                    num_points=num_points,
                    dropout=dropout,
                ),
                embed_dim=embed_dim,
                feed_forward_dim=feed_forward_dim,
                dropout=dropout,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.fusion = fusion

    def forward(self, memory: Memory) -> Memory:
        references = memory.cell_centers[:, :, None] * memory.valid_ratios[:, None]  # (B, S, L, 2)

        def attend(attention: nn.Module, now: Memory) -> Tensor:
            return attention(now.tokens + now.positions, references, now)

        return refine_layer_by_layer(memory, self.layers, lambda layer, now: layer(now, attend), fusion=self.fusion)
