"""DN-DETR: DAB-DETR with denoising; the matching queries' content is the label embedding of an unknown class (Li et al.
2022, section 4.5)."""

from detectron2.config import LazyCall as L

from dinox.modeling import LabelEmbedding, UnknownLabelContent

from .dab_detr import model
from .denoising import denoising as _denoising

model.query_groups.label_embedding = L(LabelEmbedding)(
    num_classes="${...num_classes}", embed_dim="${...embed_dim}", unknown_class=True, indicator=True
)
model.query_groups.matching.content = L(UnknownLabelContent)()
model.query_groups.denoising = _denoising
model.query_groups.denoising.label_embedding = None
