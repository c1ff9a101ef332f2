"""DAB-DETR with three content queries ("patterns") for each of its 300 anchor boxes, as in Anchor DETR."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors, PatternContent, RepeatedAnchors

from .dab_detr import model

model.query_groups.matching.content = L(PatternContent)(num_patterns=3, embed_dim="${....embed_dim}")
model.query_groups.matching.anchors = L(RepeatedAnchors)(
    anchors=L(LearnedAnchors)(num_queries="${.....num_queries}", start="normal"), times="${..content.num_patterns}"
)
