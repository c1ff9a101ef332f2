"""Parts of detection transformers, and the one meta-architecture that joins them; ROI heads for detectron2's own."""

from dinox.modeling.backbone import build_resnet
from dinox.modeling.criterion import Criterion
from dinox.modeling.decoder import DeformableDecoder
from dinox.modeling.encoder import DeformableEncoder, MemoryBuilder
from dinox.modeling.heads import PredictionHeads
from dinox.modeling.meta_arch import DetectionTransformer
from dinox.modeling.neck import ChannelMapper
from dinox.modeling.postprocess import TopKDetections
from dinox.modeling.queries import (
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenoisingQueries,
    DynamicGroups,
    FixedGroups,
    LabelEmbedding,
    LearnedAnchors,
    LearnedContent,
    MatchingQueries,
    QueryGroups,
    QuerySelection,
    SelectedAnchors,
    SelectedContent,
)
from dinox.modeling.roi_heads import BoxDenoising, DenoisingCascadeROIHeads, DenoisingROIHeads

__all__ = [
    "BoxDenoising",
    "CenterShiftAndScale",
    "ChannelMapper",
    "ContrastiveBoxNoise",
    "Criterion",
    "DeformableDecoder",
    "DeformableEncoder",
    "DenoisingCascadeROIHeads",
    "DenoisingQueries",
    "DenoisingROIHeads",
    "DetectionTransformer",
    "DynamicGroups",
    "FixedGroups",
    "LabelEmbedding",
    "LearnedAnchors",
    "LearnedContent",
    "MatchingQueries",
    "MemoryBuilder",
    "PredictionHeads",
    "QueryGroups",
    "QuerySelection",
    "SelectedAnchors",
    "SelectedContent",
    "TopKDetections",
    "build_resnet",
]
