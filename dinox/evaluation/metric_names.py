"""Which metrics an evaluator will give, before it has seen an image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.evaluation import COCOEvaluator, LVISEvaluator

from dinox.evaluation.detections import COUNT
from dinox.evaluation.nms import WITH, WITHOUT, WithAndWithoutNMS

_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_LVIS = (*_COCO, "APr", "APc", "APf")
_TASKS = ("bbox", "segm", "keypoints")
_OF_CLASS = re.compile(rf"({'|'.join(_TASKS)})/AP-.+")


@dataclass(frozen=True)
class KnownMetrics:
    """names: all there may be, some of them for models with masks or NMS only; but not those of single classes,
    ``bbox/AP-<class>``."""

    names: Sequence[str]

    def has(self, metric: str) -> bool:
        return metric in self.names or _OF_CLASS.fullmatch(metric) is not None


def known_metrics(evaluator: Any) -> KnownMetrics | None:
    """Of detectron2's evaluators for COCO and LVIS, ours, and lists of them; None for anything else."""
    evaluators = evaluator if isinstance(evaluator, Sequence) else [evaluator]
    names: list[str] = []
    for each in evaluators:
        suffixes = [""]
        if isinstance(each, WithAndWithoutNMS):
            suffixes, each = ["", WITH, WITHOUT], each.wrapped
        if not isinstance(each, (COCOEvaluator, LVISEvaluator)):
            return None
        metrics = _LVIS if isinstance(each, LVISEvaluator) else _COCO
        tasks = getattr(each, "_tasks", None) or _TASKS  # None: told by the predictions
        names += [f"{task}/{metric}{suffix}" for task in tasks for suffix in suffixes for metric in metrics]
    return KnownMetrics([*names, COUNT])
