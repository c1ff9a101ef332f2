"""NMS within each class behind the ranking, and the evaluation with and without it in one pass.

from ....configs.common.nms import evaluator as _evaluator, postprocess as _postprocess
model.postprocess, dataloader.evaluator = _postprocess, _evaluator
"""

from detectron2.config import LazyCall as L

from dinox.evaluation import CocoEvaluator, WithAndWithoutNMS
from dinox.modeling import ClassNMS, ClassSoftNMS, TopKDetections

# Stable-DINO: 0.8 behind the 300 best pairs of query and class.
postprocess = L(ClassNMS)(ranking=L(TopKDetections)(num_detections=300), iou_threshold=0.8)

# Co-DINO: of as many pairs as queries, those that linear soft-NMS leaves with the best scores.
soft_postprocess = L(ClassSoftNMS)(
    ranking=L(TopKDetections)(num_detections="${...num_queries}"),
    iou_threshold=0.8,
    min_score=1e-3,
    num_detections=300,
)

evaluator = L(WithAndWithoutNMS)(
    evaluator=L(CocoEvaluator)(dataset_name="${...test.dataset.names}", output_dir="${train.output_dir}/inference"),
)
