"""Co-DINO++ on LVIS: federated loss around the quality focal loss; Swin-L, 5 scales, 36 epochs."""

from detectron2.config import LazyCall as L

from dinox.data import ClassImageCounts
from dinox.losses import FederatedLoss

from ....configs.common.data.coco_lsj import dataloader as _coco
from ....configs.common.data.lvis import dataloader
from ....configs.common.data.lvis import images_per_epoch as _images_per_epoch
from .co_dino_swin_large_5scale_12ep import lr_multiplier, model, optimizer, schedule, train

dataloader.train.copy_paste = _coco.train.copy_paste
dataloader.train.mapper.masks = _coco.train.mapper.masks
dataloader.train.mapper.augmentations.size = 1280

model.num_classes = 1203
model.criterion.class_loss = L(FederatedLoss)(
    loss=model.criterion.class_loss,
    image_counts=L(ClassImageCounts)(source="${dataloader.train.dataset.names}"),
)
model.postprocess.num_detections = 1000
model.postprocess.ranking.num_detections = "${..num_detections}"

schedule.update(epochs=36, drop_epochs=[30], images_per_epoch=_images_per_epoch)

train.output_dir = "./output/co_dino_swin_large_5scale_lsj_lvis_36ep"
