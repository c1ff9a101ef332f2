"""Feature maps -> flattened memory."""

import torch
from torch import Tensor, nn

from dinox.structures import FeaturePyramid, Memory, flatten_pyramid
from dinox.utils.precision import coordinate_dtype


class MemoryBuilder(nn.Module):
    """Flattens the levels, and gives every token its position: the embedding of its place plus that of its level.

    A single level has no embedding of its own: there is none to be told apart from.
    """

    def __init__(self, *, position_embedding: nn.Module, embed_dim: int, num_levels: int):
        super().__init__()
        self.position_embedding = position_embedding
        self.level_embeddings = None
        if num_levels > 1:
            if hasattr(position_embedding, "embed_points"):
                raise ValueError(
                    "positions whose columns and rows are embedded apart are for one level, got num_levels = "
                    f"{num_levels}: set model.backbone.num_levels=1, or take another position embedding and encoder"
                )
            self.level_embeddings = nn.Parameter(torch.empty(num_levels, embed_dim))
            nn.init.normal_(self.level_embeddings)

    def forward(self, pyramid: FeaturePyramid) -> Memory:
        dtype = coordinate_dtype(pyramid.maps[0])

        def embed_positions(level: int, padding_mask: Tensor) -> Tensor:
            """(B, h, w) bool -> (B, h * w, D)."""
            positions = self.position_embedding(padding_mask).flatten(2).transpose(1, 2).to(dtype)
            return positions if self.level_embeddings is None else positions + self.level_embeddings[level]

        return flatten_pyramid(pyramid, embed_positions, getattr(self.position_embedding, "embed_points", None))
