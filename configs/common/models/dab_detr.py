"""DAB-DETR: Conditional DETR whose queries are anchor boxes, refined from layer to layer (Liu et al. 2022)."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors

from .conditional_detr import model

model.memory_builder.position_embedding.temperature = 20
model.encoder.update(dropout=0.0, activation="prelu", scaled_positions=True)
model.query_groups.matching.anchors = L(LearnedAnchors)(num_queries="${....num_queries}", start="normal")
model.decoder.update(anchor_dim=4, look_forward="twice", positions="anchors")
model.criterion.weights["class"] = 1.0
