"""Co-DINO++ on LVIS, Swin-L, 5 scales: pre-trained on Objects365, 16 epochs at 1536 x 1536 pixels."""

from .co_dino_swin_large_5scale_lsj_lvis_36ep import dataloader, lr_multiplier, model, optimizer, schedule, train
from .co_dino_swin_large_5scale_objects365_22ep import model as _pretrained

dataloader.train.mapper.augmentations.size = 1536

model.query_groups.denoising = _pretrained.query_groups.denoising
model.backbone = _pretrained.backbone

optimizer.lr = 1e-4
schedule.update(epochs=16, drop_epochs=[8])

train.init_checkpoint = "./output/co_dino_swin_large_5scale_objects365_22ep/model_final.pth"
train.output_dir = "./output/co_dino_swin_large_5scale_objects365_lvis_16ep"
