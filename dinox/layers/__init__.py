"""Layers that encoders, decoders and heads are made of."""

from dinox.layers.attention import QuerySelfAttention
from dinox.layers.deformable_attention import DeformableAttention
from dinox.layers.feed_forward import MLP, FeedForward, xavier_init
from dinox.layers.position_embedding import SinePositionEmbedding, sine_anchor_embedding, sine_position_map
from dinox.layers.prediction import make_box_head, make_class_head

__all__ = [
    "MLP",
    "DeformableAttention",
    "FeedForward",
    "QuerySelfAttention",
    "SinePositionEmbedding",
    "make_box_head",
    "make_class_head",
    "sine_anchor_embedding",
    "sine_position_map",
    "xavier_init",
]
