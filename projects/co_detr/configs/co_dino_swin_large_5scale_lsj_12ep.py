"""Co-DINO++: large-scale jitter to 1280 x 1280 pixels with copy-paste; Swin-L, 5 scales, 12 epochs."""

from .co_dino_r50_5scale_lsj_12ep import dataloader
from .co_dino_swin_large_5scale_12ep import lr_multiplier, model, optimizer, schedule, train

dataloader.train.mapper.augmentations.size = 1280

train.output_dir = "./output/co_dino_swin_large_5scale_lsj_12ep"
