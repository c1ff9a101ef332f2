"""Encoders: they refine the memory."""

from dinox.modeling.encoder.deformable import DeformableEncoder
from dinox.modeling.encoder.dense import DenseEncoder, RowColumnEncoder
from dinox.modeling.encoder.fusion import DenseFusion, SimpleFusion, ULikeFusion
from dinox.modeling.encoder.layers import refine_layer_by_layer
from dinox.modeling.encoder.memory_builder import MemoryBuilder

__all__ = [
    "DeformableEncoder",
    "DenseEncoder",
    "DenseFusion",
    "MemoryBuilder",
    "RowColumnEncoder",
    "SimpleFusion",
    "ULikeFusion",
    "refine_layer_by_layer",
]
