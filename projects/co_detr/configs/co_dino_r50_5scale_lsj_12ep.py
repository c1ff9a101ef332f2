"""Co-DINO++: large-scale jitter to 1024 x 1024 pixels with copy-paste; ResNet-50, 5 scales, 12 epochs."""

from ....configs.common.data.coco_lsj import dataloader
from ....configs.common.nms import evaluator as _evaluator
from .co_dino_r50_5scale_12ep import lr_multiplier, model, optimizer, schedule, train

dataloader.evaluator = _evaluator

train.output_dir = "./output/co_dino_r50_5scale_lsj_12ep"
