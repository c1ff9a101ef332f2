"""Encoders: they refine the memory."""

from dinox.modeling.encoder.deformable import DeformableEncoder, DeformableEncoderLayer
from dinox.modeling.encoder.memory_builder import MemoryBuilder

__all__ = ["DeformableEncoder", "DeformableEncoderLayer", "MemoryBuilder"]
