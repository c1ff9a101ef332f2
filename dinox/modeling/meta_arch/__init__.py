"""The meta-architecture, and what other meta-architectures may take of it."""

from dinox.modeling.meta_arch.collaboration import drop_training_parts
from dinox.modeling.meta_arch.detection_transformer import DetectionTransformer
from dinox.modeling.meta_arch.plug_in import DenoisedQueries, Denoising

__all__ = ["DenoisedQueries", "Denoising", "DetectionTransformer", "drop_training_parts"]
