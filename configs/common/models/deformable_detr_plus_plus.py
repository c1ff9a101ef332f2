"""Deformable DETR++: two-stage, with the tricks of H-DETR: no dropout, mixed query selection, look forward twice.

The base of H-DETR and of Co-Deformable-DETR.
"""

from detectron2.config import LazyCall as L

from dinox.modeling import AnchorEmbedding, EmbeddedAnchors, LearnedContent, MatchingQueries, SelectedAnchors

from .deformable_detr_two_stage import model

model.encoder.update(feed_forward_dim=2048, dropout=0.0)
model.query_groups.anchor_embedding = L(AnchorEmbedding)(embed_dim="${...embed_dim}")
model.query_groups.matching = L(MatchingQueries)(
    content=L(LearnedContent)(num_queries="${....num_queries}", embed_dim="${....embed_dim}", std=1.0),
    anchors=L(EmbeddedAnchors)(anchors=L(SelectedAnchors)(num_queries="${.....num_queries}")),
)
model.decoder.look_forward = "twice"
model.criterion.weights["class"] = 2.0
model.postprocess.num_detections = 100
