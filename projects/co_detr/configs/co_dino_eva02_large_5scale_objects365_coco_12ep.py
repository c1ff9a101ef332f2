"""Co-DINO, EVA-02 Large, 5 scales: pre-trained on Objects365, fine-tuned on COCO for 12 epochs (appendix B)."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.nms import evaluator as _evaluator
from ....configs.common.schedule import schedule
from .co_dino_eva02_large_5scale_objects365_26ep import lr_multiplier, model, optimizer, train

dataloader.train.mapper.augmentations.update(short_edges=list(range(480, 1537, 32)), max_size=2400)
dataloader.train.total_batch_size = 64
dataloader.test.mapper.augmentations.update(short_edge=1280, max_size=2048)
dataloader.evaluator = _evaluator

model.num_classes = 80  # heads and label embeddings of 365 classes start anew
model.query_groups.denoising.groups.num_queries = 300  # the authors' code

schedule.update(epochs=12, drop_epochs=[8])
lr_multiplier.warmup_epochs = 500 * dataloader.train.total_batch_size / schedule.images_per_epoch

# The paper has "EMA", the authors' code momentum 1e-4 with mmdetection's exponential warm-up.
train.ema.update(enabled=True, decay=0.9999, warmup=2000)
train.init_checkpoint = "./output/co_dino_eva02_large_5scale_objects365_26ep/model_final.pth"
train.output_dir = "./output/co_dino_eva02_large_5scale_objects365_coco_12ep"
