"""Boxes as vectors, through their sine embedding.

Legend: B images, N boxes.
"""

from torch import Tensor, nn

from dinox.layers.feed_forward import xavier_init
from dinox.layers.position_embedding import ANCHOR_TEMPERATURE, FULL_TURN, sine_features
from dinox.utils.precision import at_least_float32


class BoxEmbedding(nn.Module):
    """A normed linear map of the sine embedding of boxes (Deformable DETR's two-stage code; Co-DETR, equation 4).

    The embedding is in the order x, y, w, h, unlike that of anchors in decoders.
    """

    def __init__(self, *, embed_dim: int, out_dim: int):
        super().__init__()
        self.num_features = embed_dim // 2  # per coordinate
        self.projection = nn.Linear(4 * self.num_features, out_dim)
        self.norm = nn.LayerNorm(out_dim)
        xavier_init(self.projection)

    def embed(self, boxes: Tensor) -> Tensor:
        """(B, N, 4) normalised cxcywh -> (B, N, ``out_dim``)."""
        features = sine_features(at_least_float32(boxes) * FULL_TURN, self.num_features, ANCHOR_TEMPERATURE)
        return self.norm(self.projection(features.flatten(-2).to(self.projection.weight.dtype)))
