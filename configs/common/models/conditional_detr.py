"""Conditional DETR: DETR with queries that know where to look, and focal loss (Meng et al. 2021)."""

from detectron2.config import LazyCall as L

from dinox.losses import FocalLoss
from dinox.matching import FocalCost
from dinox.modeling import ConditionalDecoder, LearnedPositionedPoints, PredictionHeads, TopKDetections

from .detr import model

model.num_queries = 300
model.query_groups.matching.anchors = L(LearnedPositionedPoints)(
    num_queries="${....num_queries}", embed_dim="${....embed_dim}", num_layers=2
)
model.decoder = L(ConditionalDecoder)(
    embed_dim="${..embed_dim}",
    num_layers=6,
    num_heads="${..encoder.num_heads}",
    feed_forward_dim="${..encoder.feed_forward_dim}",
    dropout="${..encoder.dropout}",
    activation="${..encoder.activation}",
    anchor_dim=2,
    look_forward=None,
    positions="given",
    mask_memory=True,
)
model.heads = L(PredictionHeads)(
    embed_dim="${..embed_dim}", num_classes="${..num_classes}", num_layers="${..decoder.num_layers}", shared=True
)
model.criterion.matcher.class_cost = L(FocalCost)(weight=2.0)
model.criterion.class_loss = L(FocalLoss)(alpha=0.25, gamma=2.0)
model.criterion.weights["class"] = 2.0
model.postprocess = L(TopKDetections)(num_detections=300)
