"""Why collaborative heads help an encoder and a decoder: the measures of Co-DETR (sections 3.4 and 4.4)."""

from dinox.analysis.collaboration.attention import watch_cross_attention
from dinox.analysis.collaboration.conflicts import kl_matrix, mean_to_others
from dinox.analysis.collaboration.discrimination import (
    Curve,
    activated_share,
    foreground_mask,
    iof_and_iob,
)
from dinox.analysis.collaboration.maps import as_distribution, average_levels, discriminability, grad_cam
from dinox.analysis.collaboration.measuring import DETR, ImageCollaboration, measure_image, prepare
from dinox.analysis.collaboration.pictures import draw_collaboration
from dinox.analysis.collaboration.positives import Gap, Places, QueryGaps, gap, positives_of
from dinox.analysis.collaboration.report import (
    CollaborationReport,
    Conflicts,
    ModelCollaboration,
    NamedModel,
    analyze_collaboration,
)
from dinox.analysis.collaboration.scores import positive_score, watch_class_logits

__all__ = [
    "DETR",
    "CollaborationReport",
    "Conflicts",
    "Curve",
    "Gap",
    "ImageCollaboration",
    "ModelCollaboration",
    "NamedModel",
    "Places",
    "QueryGaps",
    "activated_share",
    "analyze_collaboration",
    "as_distribution",
    "average_levels",
    "discriminability",
    "draw_collaboration",
    "foreground_mask",
    "gap",
    "grad_cam",
    "iof_and_iob",
    "kl_matrix",
    "mean_to_others",
    "measure_image",
    "positive_score",
    "positives_of",
    "prepare",
    "watch_class_logits",
    "watch_cross_attention",
]
