"""Co-DINO++, EVA-02 Large, 5 scales: pre-training on Objects365 for LVIS, with large-scale jitter to 1280 x 1280 pixels
and 900 queries (appendix B).

Objects365 has no masks: nothing is pasted. Epochs and learning rate are those of the other pre-training.
"""

from ....configs.common.data.coco_lsj import dataloader as _lsj
from .co_dino_eva02_large_5scale_objects365_26ep import dataloader, lr_multiplier, model, optimizer, schedule, train

dataloader.train.mapper.augmentations = _lsj.train.mapper.augmentations
dataloader.train.mapper.augmentations.size = 1280
dataloader.train.mapper.min_box_side = _lsj.train.mapper.min_box_side
dataloader.train.aspect_ratio_grouping = _lsj.train.aspect_ratio_grouping
dataloader.train.total_batch_size = 192
dataloader.test.mapper.augmentations = _lsj.test.mapper.augmentations

model.num_queries = 900
model.postprocess.num_detections = "${..num_queries}"  # more are not ranked
model.backbone.bottom_up.network.drop_path = 0.3
model.backbone.bottom_up.update(window_size=16, global_blocks=[2, 5, 8, 11, 14, 17, 20, 23])
# Here the box head is that of all other backbones.
model.auxiliary_heads.roi.update(
    num_convs=0, hidden_dims=[1024, 1024], regression="class_specific", delta_stds=[0.1, 0.1, 0.2, 0.2]
)

lr_multiplier.warmup_epochs = 500 * dataloader.train.total_batch_size / schedule.images_per_epoch

train.output_dir = "./output/co_dino_eva02_large_5scale_lsj_objects365_26ep"
