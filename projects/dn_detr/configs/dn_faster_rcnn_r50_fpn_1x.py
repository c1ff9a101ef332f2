"""DN for Faster R-CNN (section 4.8): detectron2's Faster R-CNN, ResNet-50 with FPN, 1x, with noised boxes beside the
proposals."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from dinox.layers import CenterShiftAndScale
from dinox.modeling import BoxDenoising, DenoisingROIHeads

from ....configs.common.data.coco_detr import dataloader
from ....configs.common.schedule import lr_multiplier, schedule
from ....configs.common.train import train

# detectron2's, as it is: its trained weights load. Without the mask head, its Mask R-CNN is its Faster R-CNN.
model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
optimizer = model_zoo.get_config("common/optim.py").SGD

model.backbone.bottom_up.freeze_at = 2
for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(key)
# As parts of the config, so that checkpoints can hold it and overrides can change it.
model.roi_heads.box_head.input_shape = L(ShapeSpec)(
    channels="${....backbone.out_channels}",
    height="${...box_pooler.output_size}",
    width="${...box_pooler.output_size}",
)
model.roi_heads.box_predictor.input_shape = L(ShapeSpec)(channels="${...box_head.fc_dims.1}")

model.roi_heads._target_ = DenoisingROIHeads
model.roi_heads.denoising = L(BoxDenoising)(
    box_noise=L(CenterShiftAndScale)(center_shift=0.4, scale=0.4), num_groups=10, loss_weight=1.0
)

# What detectron2's "1x" is: its images, without DETR's crops, and its schedule in steps of 16 images.
dataloader.train.mapper.update(image_format="${model.input_format}", num_classes="${model.roi_heads.num_classes}")
dataloader.train.mapper.augmentations.update(short_edges=list(range(640, 801, 32)), crop_probability=0.0)
schedule.drop_epochs = [8, 32 / 3]  # 60,000 and 80,000 of 90,000 iterations
lr_multiplier.warmup_epochs = 2 / 15  # 1,000 iterations

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/dn_faster_rcnn_r50_fpn_1x"
