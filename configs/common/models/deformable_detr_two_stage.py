"""Deformable DETR whose queries are the encoder's best proposals (Zhu et al. 2021, section 4.2, "two-stage")."""

from detectron2.config import LazyCall as L

from dinox.modeling import ClassAgnosticSelection, EmbeddedProposals

from .deformable_detr import model

model.query_selection = L(ClassAgnosticSelection)(
    embed_dim="${..embed_dim}", num_classes="${..num_classes}", num_proposals="${..num_queries}"
)
model.query_groups.matching = L(EmbeddedProposals)(num_queries="${...num_queries}", embed_dim="${...embed_dim}")
model.decoder.look_forward = "once"
model.heads.update(shared=False, size_logit=0.0)
