"""Co-DINO on EVA-02 Large, as in the system-level rows: 1500 queries, 1000 denoising pairs with less noise, other
proposals in evaluation (Zong et al. 2023, appendix B, and the authors' code)."""

from ..backbones.eva02_large_5scale import backbone as _backbone
from .co_dino import model

model.backbone = _backbone
model.num_queries = 1500
model.query_groups.denoising.box_noise.update(lambda1=0.4, lambda2=0.8)
model.query_groups.denoising.groups.num_queries = 1000
model.query_groups.denoising.max_queries = 2000  # positives and negatives
model.auxiliary_heads.roi.proposals.update(tested_before_nms=8000, tested_after_nms=2000, tested_nms_iou=0.9)
model.auxiliary_heads.roi.max_detections = 1000
model.postprocess.num_detections = 1000
