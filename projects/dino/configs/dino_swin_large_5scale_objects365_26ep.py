"""DINO, Swin-L, 5 scales: pre-training on Objects365 for 26 epochs with 1000 denoising pairs (appendix D.2).

The paper does not say how many scales this model has (218 M parameters speak for five, which have 217.6 M; four have
217.2 M), nor when the learning rate drops: both are our choice.
"""

from ....configs.common.data.objects365 import dataloader
from ....configs.common.data.objects365 import images_per_epoch as _images_per_epoch
from .dino_swin_large_5scale_12ep import lr_multiplier, model, optimizer, schedule, train

model.num_classes = 365
model.query_groups.denoising.groups.num_queries = 1000
model.query_groups.denoising.max_queries = 2000  # positives and negatives

model.backbone.bottom_up.gradient_checkpointing = True
train.amp.enabled = True

schedule.update(epochs=26, drop_epochs=[24], images_per_epoch=_images_per_epoch)

train.output_dir = "./output/dino_swin_large_5scale_objects365_26ep"
