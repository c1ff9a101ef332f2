"""Deformable DETR: deformable attention to four levels around anchor points (Zhu et al. 2021)."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedContent, LearnedPositionedPoints, MatchingQueries

from .dino import model

model.num_queries = 300
model.memory_builder.position_embedding.update(temperature=10000, offset=-0.5)
model.encoder.update(feed_forward_dim=1024, dropout=0.1)
model.query_selection = None
model.query_groups.denoising = None
model.query_groups.matching = L(MatchingQueries)(
    content=L(LearnedContent)(num_queries="${....num_queries}", embed_dim="${....embed_dim}", std=1.0),
    anchors=L(LearnedPositionedPoints)(num_queries="${....num_queries}", embed_dim="${....embed_dim}", num_layers=1),
)
model.decoder.update(look_forward=None, positions="given", normed_outputs=False)
model.heads.size_logit = -2.0
