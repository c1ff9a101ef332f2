"""Co-DINO++, Swin-L, 5 scales, 36 epochs."""

from .co_dino_swin_large_5scale_lsj_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.drop_path = 0.5

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/co_dino_swin_large_5scale_lsj_36ep"
