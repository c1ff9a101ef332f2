"""Decoders: they refine queries by looking at the memory."""

from dinox.modeling.decoder.deformable import DecoderOutput, DeformableDecoder, DeformableDecoderLayer

__all__ = ["DecoderOutput", "DeformableDecoder", "DeformableDecoderLayer"]
