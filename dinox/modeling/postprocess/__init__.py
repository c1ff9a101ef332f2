"""Post-processing: from raw predictions to detections."""

from dinox.modeling.postprocess.suppression import ClassNMS, ClassSoftNMS
from dinox.modeling.postprocess.top_k import BestClassDetections, TopKDetections

__all__ = ["BestClassDetections", "ClassNMS", "ClassSoftNMS", "TopKDetections"]
