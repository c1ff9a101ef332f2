"""Post-processing: from raw predictions to detections."""

from dinox.modeling.postprocess.top_k import TopKDetections

__all__ = ["TopKDetections"]
