"""Row 2 of the paper's table 4, "optimized DN-DETR": static queries, look forward once, plain denoising."""

from detectron2.config import LazyCall as L

from dinox.modeling import LearnedAnchors

from .ablation_dn import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_selection = None
model.query_groups.matching.anchors = L(LearnedAnchors)(num_queries="${....num_queries}")
model.decoder.look_forward = "once"

train.output_dir = "./output/dino_ablation_static_queries"
