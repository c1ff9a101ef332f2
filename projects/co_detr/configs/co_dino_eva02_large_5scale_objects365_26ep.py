"""Co-DINO, EVA-02 Large, 5 scales: pre-training on Objects365 for 26 epochs (appendix B).

The learning rate is that of the fine-tuning, as are weight decay and warm-up, which are not published for this.
"""

from ....configs.common.data.objects365 import dataloader
from ....configs.common.data.objects365 import images_per_epoch as _images_per_epoch
from ....configs.common.models.co_dino_eva02_large import model
from ....configs.common.nms import evaluator as _evaluator
from ....configs.common.optimizer import optimizer
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

dataloader.train.mapper.augmentations.update(short_edges=list(range(480, 1025, 32)), max_size=1280)
dataloader.train.total_batch_size = 224
dataloader.evaluator = _evaluator

model.num_classes = 365
# A box head with convolutions, for a box of any class.
model.auxiliary_heads.roi.update(
    num_convs=4, hidden_dims=[1024], regression="class_agnostic", delta_stds=[0.05, 0.05, 0.1, 0.1]
)

optimizer.update(lr=5e-5, weight_decay=0.01)
optimizer.params.update(backbone_lr_factor=1.0, layer_decay=0.8, no_weight_decay=["pos_embed"])
schedule.update(epochs=26, drop_epochs=[24], images_per_epoch=_images_per_epoch)
lr_multiplier.update(
    warmup_epochs=500 * dataloader.train.total_batch_size / schedule.images_per_epoch,  # 500 steps
    warmup_factor=0.01,
)

# timm's eva02_large_patch14_224.mim_m38m; its patch embedding is resized to patches of 16.
train.init_checkpoint = "./eva02_large_patch14_224.safetensors"
train.output_dir = "./output/co_dino_eva02_large_5scale_objects365_26ep"
