"""Memory fusion, for any encoder: ``model.encoder.fusion = dense_fusion`` (Stable-DINO, section 3 and figure 4)."""

from detectron2.config import LazyCall as L

from dinox.modeling import DenseFusion, SimpleFusion, ULikeFusion

simple_fusion = L(SimpleFusion)(embed_dim="${...embed_dim}", num_layers="${..num_layers}", norm=None)
u_like_fusion = L(ULikeFusion)(embed_dim="${...embed_dim}", num_layers="${..num_layers}")
dense_fusion = L(DenseFusion)(embed_dim="${...embed_dim}", num_layers="${..num_layers}")
