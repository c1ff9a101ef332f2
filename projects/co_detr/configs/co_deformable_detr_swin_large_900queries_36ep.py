"""Co-Deformable-DETR++, Swin-L, 36 epochs, 900 queries and 300 detections."""

from .co_deformable_detr_swin_large_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.num_queries = 900
model.backbone.bottom_up.drop_path = 0.6
model.postprocess.num_detections = 300

schedule.epochs = 36
schedule.drop_epochs = [30]

train.output_dir = "./output/co_deformable_detr_swin_large_900queries_36ep"
