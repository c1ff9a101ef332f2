"""Layers that encoders, decoders and heads are made of, and other pieces that several parts of a model share."""

from dinox.layers.attention import QuerySelfAttention
from dinox.layers.box_noise import BoxNoiseDraws, CenterShiftAndScale, ContrastiveBoxNoise, draw_box_noise
from dinox.layers.deformable_attention import DeformableAttention
from dinox.layers.feed_forward import MLP, FeedForward, xavier_init
from dinox.layers.position_embedding import SinePositionEmbedding, sine_anchor_embedding, sine_position_map
from dinox.layers.prediction import make_box_head, make_class_head

__all__ = [
    "MLP",
    "BoxNoiseDraws",
    "CenterShiftAndScale",
    "ContrastiveBoxNoise",
    "DeformableAttention",
    "FeedForward",
    "QuerySelfAttention",
    "SinePositionEmbedding",
    "draw_box_noise",
    "make_box_head",
    "make_class_head",
    "sine_anchor_embedding",
    "sine_position_map",
    "xavier_init",
]
