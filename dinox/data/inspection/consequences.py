"""What training and evaluation make of problems: how many images and boxes may be left out, and where they stop."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dinox.data.boxes import KINDS
from dinox.data.coco_json import most_bad_boxes
from dinox.data.inspection.limits import ModelLimits
from dinox.data.inspection.statistics import ObjectTable
from dinox.data.problems import Problem, Severity
from dinox.data.skipping import most_bad_images

_BOX_KINDS = frozenset(KINDS.values())
_FILE_KINDS = frozenset({"missing-file", "unreadable-file"})


def in_training(
    problems: Sequence[Problem], annotations: int, table: ObjectTable, limits: ModelLimits
) -> list[Problem]:
    """The problems of a training set: errors are also those of which there are more than may be left out."""
    allowed = most_bad_boxes(annotations, limits.max_bad_boxes)
    remark = f"max_bad_boxes={limits.max_bad_boxes:g} allows {allowed} of {annotations:,}."
    problems = _escalated(problems, _BOX_KINDS, "error", allowed, remark, count=lambda problem: len(problem.places))

    trained = set(table.image_ids)
    if limits.filter_empty:
        trained = {image_id for image_id, objects in zip(table.image_ids, table.objects_per_image) if objects}
    allowed = most_bad_images(len(trained), limits.max_bad)
    remark = f"max_bad={limits.max_bad:g} allows {allowed} of {len(trained):,} images that are trained on."

    def count(problem: Problem) -> int:
        return len({place.id for place in problem.places} & trained)

    return _escalated(problems, _FILE_KINDS, "error", allowed, remark, count=count)


def in_evaluation(problems: Sequence[Problem], annotations: int, limits: ModelLimits) -> list[Problem]:
    """The problems of a validation set: evaluation leaves out no image, and no box unless the config allows it."""
    allowed = most_bad_boxes(annotations, limits.validation_max_bad_boxes)
    remark = f"Evaluation leaves out none, or they would count as missed (max_bad_boxes allows {allowed})."
    problems = _escalated(
        problems, _BOX_KINDS, "evaluation", allowed, remark, count=lambda problem: len(problem.places)
    )
    remark = "Evaluation leaves out no image."
    return _escalated(problems, _FILE_KINDS, "evaluation", 0, remark, count=lambda problem: len(problem.places))


def _escalated(
    problems: Sequence[Problem],
    kinds: frozenset[str],
    severity: Severity,
    allowed: int,
    remark: str,
    *,
    count: Callable[[Problem], int],
) -> list[Problem]:
    """With another severity for the left out problems of these kinds, if they are more than allowed in all."""

    def is_meant(problem: Problem) -> bool:
        return problem.kind in kinds and problem.severity == "left out"

    if sum(count(problem) for problem in problems if is_meant(problem)) <= allowed:
        return list(problems)
    return [
        replace(problem, severity=severity, cure=f"{problem.cure} {remark}") if is_meant(problem) else problem
        for problem in problems
    ]
