"""Decoders: they refine queries by looking at the memory."""

from dinox.modeling.decoder.conditional import ConditionalDecoder
from dinox.modeling.decoder.deformable import DeformableDecoder
from dinox.modeling.decoder.dense import DenseDecoder, RowColumnDecoder
from dinox.modeling.decoder.layers import DecoderOutput

__all__ = ["ConditionalDecoder", "DecoderOutput", "DeformableDecoder", "DenseDecoder", "RowColumnDecoder"]
