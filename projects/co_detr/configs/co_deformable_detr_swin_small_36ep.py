"""Co-Deformable-DETR++, Swin-S, 36 epochs."""

from .co_deformable_detr_swin_small_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.drop_path = 0.4

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/co_deformable_detr_swin_small_36ep"
