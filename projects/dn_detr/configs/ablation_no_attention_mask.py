"""DN-DETR with one denoising group that everybody sees: the last row of the paper's table 5."""

from detectron2.config import LazyCall as L

from dinox.modeling import FullVisibility

from .dn_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.denoising.groups.num_groups = 1
model.query_groups.visibility = L(FullVisibility)()

train.output_dir = "./output/dn_detr_ablation_no_attention_mask"
