"""Three content queries ("patterns") for each of DAB-DETR's anchor boxes, as in Anchor DETR:
``model.query_groups.matching.update(content=content, anchors=anchors)``."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors, PatternContent, RepeatedAnchors

content = L(PatternContent)(num_patterns=3, embed_dim="${....embed_dim}")
anchors = L(RepeatedAnchors)(
    anchors=L(LearnedAnchors)(num_queries="${.....num_queries}", start="normal"), times="${..content.num_patterns}"
)
