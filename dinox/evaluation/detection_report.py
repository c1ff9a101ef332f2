"""What COCO's twelve numbers do not tell, as json and pictures: each class, precision against recall, which score to
cut at, and how often objects are found twice.

Symbols: T IoU thresholds, R recalls, K classes.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

from dinox.evaluation.coco_scoring import BoxTask
from dinox.evaluation.detection_matches import ClassMatches, count_duplicates, match_classes, sweep
from dinox.evaluation.report_pictures import draw_class_aps, draw_curves, draw_scores
from dinox.utils.json_files import write_json

SCORES = (0.05, 0.1, 0.3, 0.5)
"""At which duplicates are counted, besides the best one."""


def write_report(
    folder: str | os.PathLike, task: BoxTask, summary: COCOeval, class_names: Sequence[str] | None
) -> None:
    """Write ``report.json``, ``precision_recall.png``, ``scores.png`` and ``classes.png``.

    Args:
        folder: made if it is missing; files of these names are replaced.
        summary: what ``score_boxes`` gave for ``task``.
        class_names: in the order of the ids of the categories; None: they are numbered.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matches = match_classes(task)
    names = list(class_names) if class_names is not None else [f"class {i}" for i in range(len(matches))]
    everything = ClassMatches.joined(matches)
    overall = sweep(everything)
    best = overall.best()
    levels = [*SCORES, *([best.score] if best else [])]
    precision = summary.eval["precision"][:, :, :, 0, -1]  # (T, R, K); -1 for classes without objects
    precision = np.where(precision < 0, np.nan, precision)
    aps = _mean(precision, (0, 1)), _mean(precision[0], 0)
    duplicates = [count_duplicates(everything, score=score) for score in sorted(levels)]
    write_json(
        folder / "report.json",
        {
            "images": len(task.found.image_ids),
            "objects": len(everything.found),
            "detections": len(task.found.rows),
            "best_f1": best and asdict(best),
            "duplicates": [asdict(each) for each in duplicates],
            "classes": [
                {"class": name, **_class_as_json(each, float(ap), float(ap50))}
                for name, each, ap, ap50 in zip(names, matches, *aps, strict=True)
            ],
            "precision_recall": {
                "recall": summary.params.recThrs.tolist(),
                "iou": summary.params.iouThrs.tolist(),
                "precision": _mean(precision, 2).tolist(),
                "precision_of_classes_at_iou_50": dict(zip(names, precision[0].T.tolist(), strict=True)),
            },
        },
    )
    draw_curves(folder / "precision_recall.png", summary.params.recThrs, precision, names)
    at = np.linspace(0, 1, 101)
    rates = [count_duplicates(everything, score=float(score)) for score in at]
    shares = {
        "duplicates, of the detections": np.array([rate.duplicate_rate for rate in rates]),
        "found twice, of the objects found": np.array([rate.found_twice_rate for rate in rates]),
    }
    draw_scores(folder / "scores.png", overall, best, at, shares)
    draw_class_aps(folder / "classes.png", names, *aps)


def _class_as_json(matches: ClassMatches, ap: float, ap50: float) -> dict:
    best = sweep(matches).best()
    return {
        "objects": len(matches.found),
        "detections": len(matches.scores),
        "AP": 100 * ap,
        "AP50": 100 * ap50,
        "best_f1": best and asdict(best),
    }


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Without those that are not there, and NaN where there is none."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(axis) / np.where(there.any(axis), there.sum(axis), np.nan)
