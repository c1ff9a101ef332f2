"""DINO, Swin-L, 5 scales: pre-trained on Objects365, fine-tuned on COCO for 18 epochs at 1.5 times the image size
(appendix D.2). When the learning rate drops, which the paper does not say, is our choice."""

from ....configs.common.data.coco_detr_large import dataloader
from ....configs.common.schedule import lr_multiplier, schedule
from .dino_swin_large_5scale_objects365_26ep import model, optimizer, train

model.num_classes = 80  # heads and label embeddings of 365 classes start anew

schedule.update(epochs=18, drop_epochs=[15])

train.init_checkpoint = "./output/dino_swin_large_5scale_objects365_26ep/model_final.pth"
train.output_dir = "./output/dino_swin_large_5scale_objects365_coco_18ep"
