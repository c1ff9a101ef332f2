"""DAB-Deformable-DETR whose queries are selected proposals, ResNet-50, 50 epochs."""

from detectron2.config import LazyCall as L

from dinox.modeling import QuerySelection, SelectedAnchors, SelectedContent

from .dab_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_selection = L(QuerySelection)(
    embed_dim="${..embed_dim}", num_classes="${..num_classes}", num_proposals="${..num_queries}"
)
model.query_groups.matching.content = L(SelectedContent)()
model.query_groups.matching.anchors = L(SelectedAnchors)(num_queries="${....num_queries}")
model.heads.size_logit = 0.0

train.output_dir = "./output/dab_deformable_detr_r50_two_stage_50ep"
