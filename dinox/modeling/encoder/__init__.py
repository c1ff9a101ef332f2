"""Encoders: they refine the memory."""

from dinox.modeling.encoder.deformable import DeformableEncoder
from dinox.modeling.encoder.dense import DenseEncoder, RowColumnEncoder
from dinox.modeling.encoder.memory_builder import MemoryBuilder

__all__ = ["DeformableEncoder", "DenseEncoder", "MemoryBuilder", "RowColumnEncoder"]
