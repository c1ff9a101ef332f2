"""Co-DINO, Swin-L, 5 scales: pre-training on Objects365 for 22 epochs.

Of this, only the number of epochs is published. Image sizes and batch are those of the ViT-L's pre-training, noise and
learning rate those of the fine-tuning; when the learning rate drops is our choice.
"""

from ....configs.common.data.objects365 import dataloader
from ....configs.common.data.objects365 import images_per_epoch as _images_per_epoch
from ....configs.common.nms import evaluator as _evaluator
from .co_dino_swin_large_5scale_12ep import lr_multiplier, model, optimizer, schedule, train

dataloader.train.mapper.augmentations.update(short_edges=list(range(480, 1025, 32)), max_size=1280)
dataloader.train.total_batch_size = 224
dataloader.evaluator = _evaluator

model.num_classes = 365
model.query_groups.denoising.box_noise.update(lambda1=0.4, lambda2=0.8)
model.query_groups.denoising.groups.num_queries = 500
model.query_groups.denoising.max_queries = 1000  # positives and negatives
model.backbone.bottom_up.gradient_checkpointing = True

optimizer.lr = 1e-4
schedule.update(epochs=22, drop_epochs=[20], images_per_epoch=_images_per_epoch)

train.output_dir = "./output/co_dino_swin_large_5scale_objects365_22ep"
