"""Co-DINO++, Swin-L, 5 scales, 24 epochs."""

from .co_dino_swin_large_5scale_lsj_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.backbone.bottom_up.drop_path = 0.5

schedule.epochs = 24
schedule.drop_epochs = [20]

train.output_dir = "./output/co_dino_swin_large_5scale_lsj_24ep"
