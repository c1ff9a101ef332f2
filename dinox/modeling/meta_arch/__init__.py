"""The meta-architecture."""

from dinox.modeling.meta_arch.detection_transformer import DetectionTransformer

__all__ = ["DetectionTransformer"]
