"""Feature maps -> flattened memory."""

import torch
from torch import nn

from dinox.structures import FeaturePyramid, Memory


class MemoryBuilder(nn.Module):
    """Flattens the levels, and gives every token its position: the embedding of its place plus that of its level."""

    def __init__(self, *, position_embedding: nn.Module, embed_dim: int, num_levels: int):
        super().__init__()
        self.position_embedding = position_embedding
        self.level_embeddings = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embeddings)

    def forward(self, pyramid: FeaturePyramid) -> Memory:
        masks = pyramid.padding_masks()
        positions = [
            self.position_embedding(mask).flatten(2).transpose(1, 2) + level  # (B, h*w, D)
            for mask, level in zip(masks, self.level_embeddings, strict=True)
        ]
        return Memory(
            tokens=torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1),
            positions=torch.cat(positions, dim=1),
            padding_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            spatial_shapes=pyramid.spatial_shapes,
            valid_sizes=pyramid.valid_sizes,
        )
