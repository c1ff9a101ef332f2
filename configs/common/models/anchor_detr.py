"""Anchor DETR: anchor points, three patterns each, row-column decoupled attention (Wang et al. 2022)."""

from detectron2.config import LazyCall as L

from dinox.layers import RowColumnPositions
from dinox.modeling import LearnedPoints, PatternContent, RepeatedAnchors, RowColumnDecoder, RowColumnEncoder

from .conditional_detr import model

model.backbone.norm = "GN"
model.memory_builder.position_embedding = L(RowColumnPositions)(embed_dim="${...embed_dim}")
model.encoder = L(RowColumnEncoder)(
    embed_dim="${..embed_dim}", num_layers=6, num_heads=8, feed_forward_dim=1024, dropout=0.0
)
model.query_groups.matching.content = L(PatternContent)(num_patterns=3, embed_dim="${....embed_dim}")
model.query_groups.matching.anchors = L(RepeatedAnchors)(
    anchors=L(LearnedPoints)(num_queries="${.....num_queries}"), times="${..content.num_patterns}"
)
model.decoder = L(RowColumnDecoder)(
    embed_dim="${..embed_dim}",
    num_layers=6,
    num_heads="${..encoder.num_heads}",
    feed_forward_dim="${..encoder.feed_forward_dim}",
    dropout="${..encoder.dropout}",
)
model.heads.size_logit = -2.0
model.postprocess.num_detections = 100
