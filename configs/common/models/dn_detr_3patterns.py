"""DN-DETR with three content queries for each anchor box: a pattern plus the label embedding of the unknown class."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors, PatternContent, RepeatedAnchors, UnknownLabelContent

from .dn_detr import model

model.query_groups.matching.content = L(PatternContent)(
    num_patterns=3, embed_dim="${....embed_dim}", base=L(UnknownLabelContent)()
)
model.query_groups.matching.anchors = L(RepeatedAnchors)(
    anchors=L(LearnedAnchors)(num_queries="${.....num_queries}", start="normal"), times="${..content.num_patterns}"
)
