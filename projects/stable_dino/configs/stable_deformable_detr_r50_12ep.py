"""Two-stage Deformable DETR with stable matching, ResNet-50, 12 epochs."""

from ....configs.common.models.stable_matching import class_cost as _class_cost
from ....configs.common.models.stable_matching import class_loss as _class_loss
from ....configs.common.models.stable_matching import class_weight as _class_weight
from ....configs.common.nms import evaluator as _evaluator
from ....configs.common.nms import postprocess as _postprocess
from ...deformable_detr.configs.deformable_detr_r50_two_stage_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    schedule,
    train,
)

model.criterion.class_loss = _class_loss
model.criterion.class_loss.rescale = "one"  # 300 queries (section 2.2)
model.criterion.matcher.class_cost = _class_cost
model.criterion.weights["class"] = _class_weight  # our choice: the paper has none for this detector
model.postprocess, dataloader.evaluator = _postprocess, _evaluator

schedule.epochs = 12
schedule.drop_epochs = [11]

train.output_dir = "./output/stable_deformable_detr_r50_12ep"
train.seed = 60
