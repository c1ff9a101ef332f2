"""DAB-Deformable-DETR with a deformable encoder and decoder ("++" in DN-DETR's tables): queries are anchor boxes."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors, LearnedContent, MatchingQueries

from .deformable_detr import model

model.encoder.update(feed_forward_dim=2048, dropout=0.0)
model.query_groups.matching = L(MatchingQueries)(
    content=L(LearnedContent)(num_queries="${....num_queries}", embed_dim="${....embed_dim}", std=0.0),
    anchors=L(LearnedAnchors)(num_queries="${....num_queries}", start="uniform"),
)
model.decoder.update(look_forward="once", positions="scaled_anchors")
model.heads.shared = False
