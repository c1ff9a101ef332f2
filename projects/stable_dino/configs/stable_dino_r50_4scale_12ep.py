"""Stable-DINO, ResNet-50, 4 scales, 12 epochs."""

from ....configs.common.models.memory_fusion import dense_fusion as _dense_fusion
from ....configs.common.models.stable_matching import class_cost as _class_cost
from ....configs.common.models.stable_matching import class_loss as _class_loss
from ....configs.common.models.stable_matching import class_weight as _class_weight
from ....configs.common.models.stable_matching import group_weights as _group_weights
from ....configs.common.nms import evaluator as _evaluator
from ....configs.common.nms import postprocess as _postprocess
from ...dino.configs.dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, schedule, train

model.criterion.class_loss = _class_loss
model.criterion.matcher.class_cost = _class_cost
model.criterion.weights["class"] = _class_weight
model.criterion.group_weights = _group_weights
model.encoder.fusion = _dense_fusion
model.postprocess, dataloader.evaluator = _postprocess, _evaluator

# All else is detrex's DINO, on which the authors built (section 4.1).
model.memory_builder.position_embedding.update(temperature=10000, offset=-0.5)
model.heads.shared = False

train.output_dir = "./output/stable_dino_r50_4scale_12ep"
train.seed = 60
