"""Co-Deformable-DETR without the "++", ResNet-50, 36 epochs."""

from .co_deformable_detr_plain_r50_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/co_deformable_detr_plain_r50_36ep"
