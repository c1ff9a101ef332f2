"""Scoring detections with detectron2's evaluators, and looking at them."""

from dinox.evaluation.coco import CocoEvaluator
from dinox.evaluation.contact_sheet import draw_contact_sheet
from dinox.evaluation.detection_report import write_report
from dinox.evaluation.detections import evaluate_model
from dinox.evaluation.lvis import LvisEvaluator
from dinox.evaluation.nms import WithAndWithoutNMS

__all__ = [
    "CocoEvaluator",
    "LvisEvaluator",
    "WithAndWithoutNMS",
    "draw_contact_sheet",
    "evaluate_model",
    "write_report",
]
