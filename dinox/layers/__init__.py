"""Layers that encoders, decoders and heads are made of, and other pieces that several parts of a model share."""

from dinox.layers.attention import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    MemoryAttention,
    QuerySelfAttention,
)
from dinox.layers.box_embedding import BoxEmbedding
from dinox.layers.box_noise import (
    BoxNoiseDraws,
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    SameRangeBoxNoise,
    draw_box_noise,
)
from dinox.layers.decoder_layer import DecoderLayer
from dinox.layers.deformable_attention import DeformableAttention
from dinox.layers.encoder_layer import EncoderLayer
from dinox.layers.feed_forward import MLP, Activation, FeedForward, xavier_init
from dinox.layers.normalization import GroupNorm, group_norm
from dinox.layers.position_embedding import (
    SinePositionEmbedding,
    sine_anchor_embedding,
    sine_features,
    sine_position_map,
)
from dinox.layers.prediction import make_box_head, make_class_head, move_anchors
from dinox.layers.row_column_attention import RowColumnAttention, RowColumnPositions

__all__ = [
    "MLP",
    "Activation",
    "BoxEmbedding",
    "BoxNoiseDraws",
    "CenterShiftAndScale",
    "ConditionalCrossAttention",
    "ConditionalSelfAttention",
    "ContrastiveBoxNoise",
    "DecoderLayer",
    "DeformableAttention",
    "EncoderLayer",
    "FeedForward",
    "GroupNorm",
    "MemoryAttention",
    "QuerySelfAttention",
    "RowColumnAttention",
    "RowColumnPositions",
    "SameRangeBoxNoise",
    "SinePositionEmbedding",
    "draw_box_noise",
    "group_norm",
    "make_box_head",
    "make_class_head",
    "move_anchors",
    "sine_anchor_embedding",
    "sine_features",
    "sine_position_map",
    "xavier_init",
]
