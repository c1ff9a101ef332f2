"""The deformable encoder under DAB-DETR's decoder: four levels, PReLU (DN-DETR, section 4.6)."""

from detectron2.config import LazyCall as L

from dinox.modeling import DeformableEncoder

encoder = L(DeformableEncoder)(
    embed_dim="${..embed_dim}",
    num_levels="${..backbone.num_levels}",
    num_layers=6,
    num_heads=8,
    num_points=4,
    feed_forward_dim=2048,
    dropout=0.0,
    activation="prelu",
)
