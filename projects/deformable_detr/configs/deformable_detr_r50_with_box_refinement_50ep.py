"""Deformable DETR with iterative box refinement, ResNet-50, 50 epochs."""

from .deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.decoder.look_forward = "once"
model.heads.shared = False

train.output_dir = "./output/deformable_detr_r50_with_box_refinement_50ep"
