"""Everything that files tell about a dataset before it is trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dinox.data.coco_json import outside_paths
from dinox.data.coco_problems import find_problems
from dinox.data.errors import DataError
from dinox.data.inspection.consequences import in_evaluation, in_training
from dinox.data.inspection.drift import ClassDrift, compare_shares, find_drift
from dinox.data.inspection.forecast import MemoryForecast, StepMemory, forecast_memory
from dinox.data.inspection.image_files import (
    OpenedImage,
    find_file_problems,
    find_missing,
    open_images,
    readable_entries,
)
from dinox.data.inspection.limits import ModelLimits
from dinox.data.inspection.notes import find_notes
from dinox.data.inspection.source import DatasetSource, load_source
from dinox.data.inspection.statistics import ObjectTable, Statistics, count
from dinox.data.problems import SEVERITIES, Place, Problem

OpenImages = Literal["no", "headers", "pixels"]


@dataclass(frozen=True)
class FileOptions:
    """What may be done with the image files.

    open_images: "no" only looks whether they are there, "headers" reads sizes, orientation and kind, "pixels" decodes
    them. exif, max_pixels: as in the mapper that will read them. allow_outside_image_root: touch images whose paths
    lead out of their folder. workers: threads that open files.
    """

    open_images: OpenImages = "no"
    exif: str = "apply"
    max_pixels: int | None = None
    allow_outside_image_root: bool = False
    workers: int = 8
    progress: bool = False


@dataclass(frozen=True)
class DatasetReport:
    """The findings about one dataset; problems come worst first.

    image_root: None where it is not known, so that no file was looked for. validation: the reports of the datasets to
    validate on, whose problems include how they differ from this one. shares: against this dataset's training set, for
    a validation set. opened: the images that were opened.
    """

    name: str
    json_file: str | None
    image_root: str | None
    problems: tuple[Problem, ...]
    statistics: Statistics
    limits: ModelLimits
    opened: tuple[OpenedImage, ...] = ()
    forecast: MemoryForecast | None = None
    shares: tuple[ClassDrift, ...] = ()
    validation: tuple[DatasetReport, ...] = field(default=())

    @property
    def faults(self) -> list[Problem]:
        """All problems but notes, those of the validation sets included."""
        own = [problem for problem in self.problems if problem.severity != "note"]
        return [*own, *(fault for report in self.validation for fault in report.faults)]

    @property
    def stops_training(self) -> bool:
        """Training evaluates on the validation sets, so that what stops evaluation there stops it too."""
        own = any(problem.severity == "error" for problem in self.problems)
        validated = (problem.severity for report in self.validation for problem in report.problems)
        return own or not {"error", "evaluation"}.isdisjoint(validated)


def inspect_dataset(
    dataset: str | os.PathLike,
    *,
    image_root: str | os.PathLike | None = None,
    validation: Sequence[str | os.PathLike] = (),
    limits: ModelLimits,
    check_num_classes: bool = False,
    step_memory: StepMemory | None = None,
    files: FileOptions = FileOptions(),
) -> DatasetReport:
    """Look for everything that is wrong with a dataset, and count what is in it.

    Args:
        dataset: a name registered with detectron2, or a COCO json.
        image_root: see ``load_source``; for ``validation`` too, unless it is registered with a folder of its own.
        validation: datasets to evaluate on, likewise; they are inspected and compared.
        limits: what the model has room for.
        check_num_classes: whether the dataset has to have ``limits.num_classes``.
        step_memory: of the config, for the forecast.
        files: what may be done with the image files.

    Raises DataError if one of the datasets cannot be read at all.
    """
    train = load_source(dataset, image_root=image_root)
    sources = [_load_validation(each, image_root) for each in validation]
    table = ObjectTable(train.coco)
    report = _inspect(train, table, limits, files)
    problems = in_training(report.problems, len(train.coco["annotations"]), table, limits)
    problems += _number_of_classes(table, limits) if check_num_classes else []
    return replace(
        report,
        problems=_worst_first(problems),
        forecast=None if step_memory is None else forecast_memory(step_memory, table.sizes, limits),
        validation=tuple(_compared(train, report.statistics, source, limits, files) for source in sources),
    )


def _load_validation(dataset: str | os.PathLike, image_root: str | os.PathLike | None) -> DatasetSource:
    source = load_source(dataset)
    registered = source.name != source.json_file and source.image_root is not None
    return source if registered or image_root is None else replace(source, image_root=os.fspath(image_root))


def _inspect(source: DatasetSource, table: ObjectTable, limits: ModelLimits, files: FileOptions) -> DatasetReport:
    file_problems, opened = _look_at_files(source, files)
    problems = [*find_problems(source.coco), *file_problems, *find_notes(source.coco, table, limits)]
    return DatasetReport(
        name=source.name,
        json_file=source.json_file,
        image_root=source.image_root,
        problems=_worst_first(problems),
        statistics=count(source.coco, table),
        limits=limits,
        opened=tuple(opened),
    )


def _compared(
    train: DatasetSource, trained: Statistics, source: DatasetSource, limits: ModelLimits, files: FileOptions
) -> DatasetReport:
    report = _inspect(source, ObjectTable(source.coco), limits, files)
    problems = in_evaluation(report.problems, len(source.coco["annotations"]), limits)
    classes = report.statistics.classes
    return replace(
        report,
        problems=_worst_first([*problems, *find_drift(train, source, trained.classes, classes)]),
        shares=compare_shares(trained.classes, classes),
    )


def _look_at_files(source: DatasetSource, files: FileOptions) -> tuple[list[Problem], list[OpenedImage]]:
    """Problems of image paths and files, and the images that were opened."""
    entries = readable_entries(source, allow_outside=files.allow_outside_image_root)
    problems = []
    if source.image_root is not None and not files.allow_outside_image_root:
        problems += outside_paths(source.coco, source.image_root)
    if not _folder_is_known(source):
        if files.open_images != "no":
            raise DataError(f"{source.title}: its images are not found. Say where they are: --images FOLDER")
        return problems, []
    if source.image_root is not None and not os.path.isdir(source.image_root or "."):
        place = Place(source.image_root, f"no folder {source.image_root}", source.image_root)
        cure = "Register the right folder, or give it: --images FOLDER"
        return [*problems, Problem("image-folder", "error", "dataset", place.detail, (place,), cure)], []
    problems += find_missing(source, entries)
    if files.open_images == "no":
        return problems, []
    opened = open_images(
        source,
        entries,
        decode=files.open_images == "pixels",
        exif=files.exif,
        max_pixels=files.max_pixels,
        workers=files.workers,
        progress=files.progress,
    )
    return [*problems, *find_file_problems(opened)], opened


def _folder_is_known(source: DatasetSource) -> bool:
    """Datasets of another kind than a json have whole paths."""
    return source.image_root is not None or source.json_file is None


def _number_of_classes(table: ObjectTable, limits: ModelLimits) -> list[Problem]:
    found = len(table.category_ids)
    if limits.num_classes is None or found == limits.num_classes:
        return []
    text = f"model.num_classes is {limits.num_classes} in {limits.config}, but there are {found} categories"
    cure = f"Set model.num_classes={found}"
    return [Problem("num-classes", "error", "dataset", text, (Place(limits.config, text),), cure)]


def _worst_first(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    order = list(SEVERITIES)
    return tuple(sorted(problems, key=lambda problem: order.index(problem.severity)))
