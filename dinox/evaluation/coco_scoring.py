"""COCO's metrics of boxes, by whichever implementation is there, some classes at a time.

Symbols: T IoU thresholds, R recalls, K classes, A ranges of areas, M limits of detections per image.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOeval_opt, COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dinox.data.errors import DataError
from dinox.evaluation.detection_store import StoredDetections

_PORTION = 50_000
"""Detections that are scored at once; a class is always whole. A dictionary for each takes about 1 kB of memory."""

_COCOS_LIMIT = 100  # of detections per image and class, which is what COCO's summary is for


def fast_implementation() -> type[COCOeval]:
    """faster-coco-eval's where it is installed, then detectron2's where that is built, then COCO's own.

    All give the same numbers.
    """
    if importlib.util.find_spec("faster_coco_eval") is not None:
        from faster_coco_eval import COCOeval_faster

        return COCOeval_faster
    return COCOeval_opt


@dataclass(frozen=True)
class BoxTask:
    """What is scored: detections against the annotations of some images.

    ground_truth: COCO's index of the annotations. found: all detections. category_ids: by class index; None: classes
    have the numbers of their categories. max_dets: three limits of detections per image and class, ascending; the last
    one is for AP. image_ids: of the images that count; None: all.
    """

    ground_truth: COCO
    found: StoredDetections
    category_ids: Mapping[int, int] | None
    max_dets: Sequence[int] = (1, 10, _COCOS_LIMIT)
    image_ids: Sequence[int] | None = None

    def __post_init__(self):
        seen = {i for i, count in zip(self.found.image_ids, self.found.counts) if count > 0}
        unknown = seen - set(self.ground_truth.getImgIds())
        if unknown:
            raise DataError(
                f"detections are of an image that the dataset's json does not have: image_id {min(unknown)!r} "
                f"({len(unknown)} in all). The loader and the evaluator have to be of one dataset"
            )

    def prepared(self, implementation: type[COCOeval]) -> Iterator[COCOeval]:
        """An evaluation, ready to run, of each portion of the classes; together all, in the order of their ids."""
        for categories in self._portions():
            anns = [
                ann | {"id": i, "area": ann["bbox"][2] * ann["bbox"][3], "iscrowd": 0}
                for i, ann in enumerate(self._of(categories), start=1)
            ]
            with quiet():
                evaluation = implementation(self.ground_truth, _index(self.ground_truth, anns), "bbox")
            evaluation.params.catIds, evaluation.params.maxDets = categories, list(self.max_dets)
            if self.image_ids is not None:
                evaluation.params.imgIds = list(self.image_ids)
            yield evaluation

    def _of(self, categories: Sequence[int]) -> Iterator[dict]:
        if self.category_ids is None:
            return self.found.of_classes(categories).as_coco(None)
        wanted = set(categories)
        classes = [index for index, category in self.category_ids.items() if category in wanted]
        return self.found.of_classes(classes).as_coco(self.category_ids)

    def _portions(self) -> list[list[int]]:
        numbers = dict(zip(*(x.tolist() for x in np.unique(self.found.classes, return_counts=True))))
        if self.category_ids is not None:
            numbers = {self.category_ids[index]: number for index, number in numbers.items()}
        portions, size = [], _PORTION + 1
        for category in sorted(self.ground_truth.getCatIds()):
            if size + numbers.get(category, 0) > _PORTION:
                portions.append([])
                size = 0
            portions[-1].append(category)
            size += numbers.get(category, 0)
        return portions


def score_boxes(task: BoxTask, implementation: type[COCOeval]) -> COCOeval:
    """COCO's summary, which it prints: with ``stats``, ``params`` and ``eval``, of which ``precision`` and ``scores``
    are (T, R, K, A, M), and ``recall`` is (T, K, A, M)."""
    parts = []
    for evaluation in task.prepared(implementation):
        with quiet():
            evaluation.evaluate()
            evaluation.accumulate()
        parts.append({name: np.asarray(evaluation.eval[name]) for name in ("precision", "recall", "scores")})
    # detectron2's for other limits, since COCO's prints and counts those of 100 only.
    summary = (COCOeval if task.max_dets[2] == _COCOS_LIMIT else COCOevalMaxDets)(task.ground_truth, None, "bbox")
    summary.params.maxDets = sorted(task.max_dets)
    axes = {"precision": 2, "recall": 1, "scores": 2}  # K
    summary.eval = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in axes.items()}
    summary.summarize()
    return summary


def _index(ground_truth: COCO, annotations: list[dict]) -> COCO:
    """pycocotools' index of detections, without the polygons that its loadRes draws around boxes."""
    coco = COCO()
    coco.dataset = {
        "images": ground_truth.dataset["images"],
        "categories": ground_truth.dataset["categories"],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def quiet() -> Any:
    """Progress of single portions says nothing to anybody."""
    return contextlib.redirect_stdout(io.StringIO())
