"""DINO with DN-DETR's box noise, positives only, instead of contrastive denoising: table 4 row 5, tables 6 and 7."""

from detectron2.config import LazyCall as L

from dinox.modeling import CenterShiftAndScale

from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.query_groups.denoising.box_noise = L(CenterShiftAndScale)(center_shift=0.4, scale=0.4)

train.output_dir = "./output/dino_ablation_dn"
