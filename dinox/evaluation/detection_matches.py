"""Which detections are right, what is left of them above each score, and how often objects are found twice.

A detection is right (a true positive) as COCO counts it at an IoU of 0.5: it has the best score of those of its class
that could have the object, and an object is had once. Detections of crowd regions are neither right nor wrong.

Symbols: K classes, N detections, M objects, R recalls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from dinox.evaluation.coco_scoring import BoxTask, quiet

IOU = 0.5
"""Above which a detection has an object."""

DUPLICATE_IOU = 0.7
"""Above which two detections of a class are of one object. Objects overlap less, all but a few."""


@dataclass(frozen=True)
class ClassMatches:
    """Of one class, in all images; detections of crowd regions are left out.

    scores, right, duplicate: (N,) of detections, scores descending; ``duplicate``: overlaps a better one of the class
    in its image by more than ``DUPLICATE_IOU``. found, found_again: (M,) scores of the detection that has an object,
    and of the best wrong one that overlaps it by ``IOU`` too; -1 without.
    """

    scores: np.ndarray
    right: np.ndarray
    duplicate: np.ndarray
    found: np.ndarray
    found_again: np.ndarray

    @staticmethod
    def joined(parts: Sequence["ClassMatches"]) -> "ClassMatches":
        arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ClassMatches.__annotations__]
        order = np.argsort(-arrays[0], kind="stable")
        return ClassMatches(*(array[order] for array in arrays[:3]), *arrays[3:])


@dataclass(frozen=True)
class Operation:
    """What detections with scores of at least ``score`` are worth. All but it are shares, 0..1."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Duplicates:
    """Among detections with scores of at least ``score``.

    duplicate_rate: the share of detections that overlap a better one of their class by more than ``DUPLICATE_IOU``.
    found_twice_rate: of the objects that were found, the share that a second detection of the class, which has no
    object, overlaps by ``IOU`` too.
    """

    score: float
    detections: int
    duplicates: int
    duplicate_rate: float
    objects_found: int
    objects_found_twice: int
    found_twice_rate: float


@dataclass(frozen=True)
class Sweep:
    """(S,) each: scores to cut at, descending, and what is left then."""

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> Operation | None:
        """With the best F1; among equal ones the highest score. None without detections."""
        if len(self.scores) == 0:
            return None
        i = int(self.f1.argmax())
        return Operation(*(float(x[i]) for x in (self.scores, self.precision, self.recall, self.f1)))


def sweep(matches: ClassMatches) -> Sweep:
    """Precision, recall and F1 at every score that occurs."""
    # Equal scores cannot be cut apart: each is the last of its kind.
    last = np.flatnonzero(np.diff(matches.scores, append=-np.inf))
    right = np.cumsum(matches.right)[last]
    objects = len(matches.found)
    recall = right / objects if objects else np.zeros(len(last))
    return Sweep(
        scores=matches.scores[last], precision=right / (last + 1), recall=recall, f1=2 * right / (last + 1 + objects)
    )


def count_duplicates(matches: ClassMatches, *, score: float) -> Duplicates:
    kept = matches.scores >= score
    duplicates, found = int(matches.duplicate[kept].sum()), int((matches.found >= score).sum())
    again = int((matches.found_again >= score).sum())
    return Duplicates(
        score=score,
        detections=int(kept.sum()),
        duplicates=duplicates,
        duplicate_rate=duplicates / max(1, int(kept.sum())),
        objects_found=found,
        objects_found_twice=again,
        found_twice_rate=again / max(1, found),
    )


def match_classes(task: BoxTask) -> list[ClassMatches]:
    """Per class, in the order of the ids of the categories; by COCO's own matching."""
    classes = []
    for evaluation in task.prepared(COCOeval):
        params = evaluation.params
        params.iouThrs, params.areaRng, params.areaRngLbl = np.array([IOU]), params.areaRng[:1], params.areaRngLbl[:1]
        with quiet():
            evaluation.evaluate()
        per_class = len(params.imgIds)
        for start in range(0, len(evaluation.evalImgs), per_class):
            classes.append(ClassMatches.joined([_NOTHING, *_images(evaluation, start, start + per_class)]))
    return classes


_NOTHING = ClassMatches(
    np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), found=np.zeros(0), found_again=np.zeros(0)
)


def _images(evaluation: COCOeval, start: int, stop: int) -> Iterator[ClassMatches]:
    for image in evaluation.evalImgs[start:stop]:
        if image is not None:
            yield _match_image(evaluation, image)


def _match_image(evaluation: COCOeval, image: dict) -> ClassMatches:
    """Of one class in one image, from what pycocotools noted: detections are ordered by their scores there."""
    scores, objects = np.asarray(image["dtScores"]), ~np.asarray(image["gtIgnore"], dtype=bool)
    counts, right = ~image["dtIgnore"][0], image["dtMatches"][0] > 0
    boxes = np.array([evaluation.cocoDt.anns[i]["bbox"] for i in image["dtIds"]]).reshape(-1, 4)
    has = image["gtMatches"][0][objects]  # by which detection
    score_of = dict(zip(image["dtIds"], scores))
    found = np.array([score_of.get(int(i), -1.0) for i in has])
    found_again = np.full(len(found), -1.0)
    wrong = counts & ~right
    if wrong.any() and len(found):
        true_boxes = [evaluation.cocoGt.anns[i]["bbox"] for i, real in zip(image["gtIds"], objects) if real]
        near = _iou(boxes[wrong], np.array(true_boxes)) >= IOU  # (wrong, objects)
        found_again = np.where(near & (found >= 0), scores[wrong][:, None], -1.0).max(0)
    duplicate = (np.tril(_iou(boxes, boxes), -1) > DUPLICATE_IOU).any(1)
    return ClassMatches(scores[counts], right[counts], duplicate[counts], found=found, found_again=found_again)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, B) of x, y, width, height."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    opposite = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    shared = np.clip(opposite - corner, 0, None).prod(-1)
    union = first[:, 2:].prod(-1)[:, None] + second[:, 2:].prod(-1)[None] - shared
    return shared / np.maximum(union, np.finfo(float).tiny)
