"""Co-DINO, Swin-L, 5 scales: pre-trained on Objects365, fine-tuned on COCO for 16 epochs with larger images."""

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.nms import evaluator as _evaluator
from ....configs.common.schedule import lr_multiplier, schedule
from .co_dino_swin_large_5scale_objects365_22ep import model, optimizer, train

dataloader.train.mapper.augmentations.update(short_edges=list(range(480, 1537, 32)), max_size=2048)
dataloader.test.mapper.augmentations.update(short_edge=1280, max_size=2048)
dataloader.evaluator = _evaluator

model.num_classes = 80  # heads and label embeddings of 365 classes start anew

schedule.update(epochs=16, drop_epochs=[8])

train.init_checkpoint = "./output/co_dino_swin_large_5scale_objects365_22ep/model_final.pth"
train.output_dir = "./output/co_dino_swin_large_5scale_objects365_coco_16ep"
