"""Co-Deformable-DETR++, Swin-T, 36 epochs."""

from .co_deformable_detr_swin_tiny_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.drop_path = 0.3

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/co_deformable_detr_swin_tiny_36ep"
