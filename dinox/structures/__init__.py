"""Data that the parts of the model exchange."""

from dinox.structures.auxiliary import HeadOutput, HeadPyramid, HeadSamples
from dinox.structures.boxes import (
    box_iou,
    clamped_box_iou,
    cxcywh_to_xyxy,
    exact_generalized_box_iou,
    generalized_box_iou,
    inverse_sigmoid,
    side_distances,
    xyxy_to_cxcywh,
)
from dinox.structures.class_rows import ClassRows, PlacedRows, RowLayout
from dinox.structures.memory import FeaturePyramid, Memory, flatten_pyramid
from dinox.structures.predictions import BACKGROUND, BEFORE_NMS, MatchedPredictions, PredictionSet, RawPredictions
from dinox.structures.queries import (
    ANY_CLASS,
    MATCHING,
    KnownClasses,
    Proposals,
    QueryContext,
    QueryGroup,
    build_attention_mask,
)
from dinox.structures.targets import Targets, TargetView
from dinox.structures.whole_batch import WholeBatch

__all__ = [
    "ANY_CLASS",
    "BACKGROUND",
    "BEFORE_NMS",
    "MATCHING",
    "ClassRows",
    "FeaturePyramid",
    "HeadOutput",
    "HeadPyramid",
    "HeadSamples",
    "KnownClasses",
    "MatchedPredictions",
    "Memory",
    "PlacedRows",
    "PredictionSet",
    "Proposals",
    "QueryContext",
    "QueryGroup",
    "RawPredictions",
    "RowLayout",
    "TargetView",
    "Targets",
    "WholeBatch",
    "box_iou",
    "build_attention_mask",
    "clamped_box_iou",
    "cxcywh_to_xyxy",
    "exact_generalized_box_iou",
    "flatten_pyramid",
    "generalized_box_iou",
    "inverse_sigmoid",
    "side_distances",
    "xyxy_to_cxcywh",
]
