"""LVIS v1 with large-scale jitter: 1203 classes, the rare ones repeated (Gupta et al. 2019, appendix B.2).

Its annotations are federated: of an image they are complete for some classes only. FederatedLoss learns from few of the
others, and LVIS's evaluator counts none of them. A model for it has num_classes=1203 and 1000 detections of an image
(model.num_classes=1203 model.postprocess.num_detections=1000), of which the evaluator counts the best 300. Where NMS
comes behind a ranking, that has to give as many: model.postprocess.ranking.num_detections=1000 besides.
"""

from detectron2.config import LazyCall as L

from dinox.data import RepeatFactorSampling
from dinox.evaluation import LvisEvaluator

from .coco_lsj import dataloader

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.sampler = L(RepeatFactorSampling)(threshold=1e-3)
dataloader.train.copy_paste = None
dataloader.train.mapper.masks = "none"

dataloader.test.dataset.names = "lvis_v1_val"

dataloader.evaluator = L(LvisEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference", max_dets_per_image=300
)

images_per_epoch = 100_170  # of the training set, those that are repeated counted once
