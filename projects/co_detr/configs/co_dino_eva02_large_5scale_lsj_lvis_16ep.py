"""Co-DINO++ on LVIS, EVA-02 Large: pre-trained on Objects365, 16 epochs at 1536 x 1536 pixels (appendix B)."""

from .co_dino_eva02_large_5scale_lsj_objects365_26ep import lr_multiplier, model, optimizer, train
from .co_dino_swin_large_5scale_lsj_lvis_36ep import dataloader, schedule
from .co_dino_swin_large_5scale_lsj_lvis_36ep import model as _lvis

dataloader.train.mapper.augmentations.size = 1536
dataloader.train.total_batch_size = 64

model.num_classes = _lvis.num_classes
model.query_groups.denoising.groups.num_queries = 300  # the authors' code
model.criterion.class_loss = _lvis.criterion.class_loss
model.postprocess = _lvis.postprocess

optimizer.weight_decay = 0.05
schedule.update(epochs=16, drop_epochs=[9, 15])
lr_multiplier.warmup_epochs = 500 * dataloader.train.total_batch_size / schedule.images_per_epoch

train.init_checkpoint = "./output/co_dino_eva02_large_5scale_lsj_objects365_26ep/model_final.pth"
train.output_dir = "./output/co_dino_eva02_large_5scale_lsj_lvis_16ep"
