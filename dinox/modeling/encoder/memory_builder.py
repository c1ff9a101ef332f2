"""Feature maps -> flattened memory."""

import torch
from torch import Tensor, nn

from dinox.structures import FeaturePyramid, Memory, flatten_pyramid


class MemoryBuilder(nn.Module):
    """Flattens the levels, and gives every token its position: the embedding of its place plus that of its level."""

    def __init__(self, *, position_embedding: nn.Module, embed_dim: int, num_levels: int):
        super().__init__()
        self.position_embedding = position_embedding
        self.level_embeddings = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embeddings)

    def forward(self, pyramid: FeaturePyramid) -> Memory:
        return flatten_pyramid(pyramid, self._embed_positions)

    def _embed_positions(self, level: int, padding_mask: Tensor) -> Tensor:
        """(B, h, w) bool -> (B, h * w, D)."""
        return self.position_embedding(padding_mask).flatten(2).transpose(1, 2) + self.level_embeddings[level]
