"""A report as text to read, as a table of all faults, and as plain data."""

import csv
import os
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dinox.data.inspection.fixing import FixReport
from dinox.data.inspection.forecast import OVERHEAD, MemoryForecast
from dinox.data.inspection.report import DatasetReport
from dinox.data.inspection.statistics import Spread, Statistics
from dinox.data.problems import LISTED, SEVERITIES, Problem, listed
from dinox.utils.whole_files import written_whole

CSV_COLUMNS = ("kind", "severity", "where", "id", "file", "detail")

_LISTED_CLASSES = 20
_WIDTH = 110  # characters of a line
_INDENT = " " * 10


def describe(report: DatasetReport) -> str:
    """The report for people; ends with what to do."""
    lines = [*_dataset(report), *_forecast(report.forecast)]
    for validation in report.validation:
        lines += ["", *_dataset(validation)]
    return "\n".join([*lines, "", *_what_to_do(report)])


def describe_fix(report: FixReport) -> str:
    """What is different in the new json, what is not in it, and what is still wrong with it."""
    lines = [f"Wrote {report.json_file}"]
    for title, changes in (("changed", report.changed), ("left out", report.left_out)):
        lines += [f"  {title}: {'' if changes else 'nothing'}".rstrip()]
        for change in changes:
            ids = listed(change.ids, total=len(change.ids))
            lines.append(f"  {_counted(len(change.ids), change.where)}: {change.text} (ids {ids})")
    if not report.remaining:
        return "\n".join([*lines, "  Nothing else is wrong with it. Register it in place of the old one."])
    lines.append("  still there:")
    for problem in report.remaining:
        lines += _problem(problem)
    return "\n".join(lines)


def write_csv(path: str | os.PathLike, report: DatasetReport) -> None:
    """One line for each place that has a problem; with validation sets, a column ``dataset`` comes first."""
    reports = [report, *report.validation]
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("dataset", *CSV_COLUMNS) if report.validation else CSV_COLUMNS)
        for each in reports:
            for problem in each.problems:
                for place in problem.places:
                    row = (problem.kind, problem.severity, problem.where, place.id, place.file, place.detail)
                    writer.writerow((each.name, *row) if report.validation else row)


def as_data(report: DatasetReport) -> dict[str, Any]:
    """The report as what json can hold; of each problem the first ten ids (all of them are in the csv)."""
    return {
        "dataset": report.name,
        "json_file": report.json_file,
        "image_root": report.image_root,
        "opened_images": len(report.opened),
        "problems": [
            {
                "kind": problem.kind,
                "severity": problem.severity,
                "where": problem.where,
                "count": len(problem.places),
                "first_ids": [place.id for place in problem.places[:LISTED]],
                "text": problem.text,
                "cure": problem.cure,
            }
            for problem in report.problems
        ],
        "statistics": asdict(report.statistics),
        "limits": asdict(report.limits),
        "memory_forecast_gib": None if report.forecast is None else asdict(report.forecast),
        "shares": [asdict(share) for share in report.shares],
        "validation": [as_data(each) for each in report.validation],
    }


# ----------------------------------------------------------------------------------------------------------------- text


def _dataset(report: DatasetReport) -> Iterator[str]:
    numbers = report.statistics
    yield report.name
    if report.json_file != report.name:
        yield f"  annotations: {report.json_file or 'from a registered function'}"
    yield f"  image files: {_images_in(report)}"
    yield (
        f"  {numbers.images:,} images, {numbers.annotations:,} annotations: {numbers.objects:,} objects of "
        f"{len(numbers.classes)} classes, {numbers.crowds:,} crowd regions"
    )
    for severity, meaning in SEVERITIES.items():
        problems = [problem for problem in report.problems if problem.severity == severity]
        if problems:
            yield ""
            yield f"  {severity.upper()}: {meaning}"
            for problem in problems:
                yield from _problem(problem)
    if all(problem.severity == "note" for problem in report.problems):
        yield ""
        yield "  No faults found."
    yield ""
    yield from _sizes(report)
    yield from _classes(report)


def _images_in(report: DatasetReport) -> str:
    if report.image_root is None and report.json_file is not None:
        return "not looked for; say where they are with --images FOLDER"
    opened = f"{len(report.opened):,} opened" if report.opened else "looked for, not opened"
    return f"{opened}, {f'in {report.image_root}' if report.image_root else 'at their own paths'}"


def _problem(problem: Problem) -> Iterator[str]:
    count = len(problem.places)
    yield from _wrapped(f"{_counted(count, problem.where)}: {problem.text}  [{problem.kind}]", indent="  ")
    if problem.where != "dataset":
        yield from _wrapped(f"{'ids' if count > 1 else 'id'} {problem.listed_ids()}")
    yield from _wrapped(problem.cure)


def _wrapped(text: str, *, indent: str = _INDENT) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False
    )


def _counted(count: int, noun: str) -> str:
    plural = {"category": "categories"}.get(noun, f"{noun}s")
    return f"{count:>7,} {noun if count == 1 else plural}"


def _sizes(report: DatasetReport) -> Iterator[str]:
    numbers, limits = report.statistics, report.limits
    yield f"  {'':<20}{'least':>10}{'median':>10}{'99 %':>10}{'greatest':>10}"
    yield from _spread("objects per image", numbers.objects_per_image)
    yield from _spread("image width", numbers.width)
    yield from _spread("image height", numbers.height)
    yield from _spread("aspect ratio", numbers.aspect_ratio, digits=2)
    yield f"  {_extremes(numbers)}"
    total = max(numbers.objects, 1)
    yield (
        f"  objects: {numbers.small / total:.0%} small (under 32 x 32 pixels), {numbers.medium / total:.0%} medium, "
        f"{numbers.large / total:.0%} large (from 96 x 96)"
    )
    room = (
        (limits.num_queries, "queries"),
        (limits.denoising_objects, "objects in denoising"),
        (limits.num_detections, "detections kept"),
    )
    listed_room = ", ".join(f"{number} {what}" for number, what in room if number is not None)
    if listed_room and not report.shares:
        yield f"  per image, {limits.config} has {listed_room}"


def _spread(label: str, spread: Spread | None, *, digits: int = 0) -> Iterator[str]:
    if spread is not None:
        values = (spread.least, spread.median, spread.percentile_99, spread.greatest)
        yield f"  {label:<20}" + "".join(f"{value:>10,.{digits}f}" for value in values)


def _extremes(numbers: Statistics) -> str:
    if numbers.largest_image is None:
        return "no image has a size"
    return f"largest image: id {numbers.largest_image}; most elongated image: id {numbers.most_elongated}"


def _classes(report: DatasetReport) -> Iterator[str]:
    """The classes with their share of the objects; of a validation set, beside that in training."""
    yield ""
    if report.shares:
        yield f"  {'class':<24}{'in training':>12}{'here':>9}"
        ranked = sorted(report.shares, key=lambda share: -abs(share.train_share - share.val_share))
        for share in ranked[:_LISTED_CLASSES]:
            flag = "  differs" if share.is_large else ""
            yield f"  {share.name[:23]:<24}{share.train_share:>12.1%}{share.val_share:>9.1%}{flag}"
    else:
        total = max(report.statistics.objects, 1)
        yield f"  {'index':>5} {'id':>5} {'class':<24}{'objects':>10}{'share':>9}"
        for each in report.statistics.classes[:_LISTED_CLASSES]:
            share = each.objects / total
            yield f"  {each.index:>5} {each.category_id!s:>5} {each.name[:23]:<24}{each.objects:>10,}{share:>9.1%}"
    if len(report.statistics.classes) > _LISTED_CLASSES:
        yield f"  ... {len(report.statistics.classes)} classes (--json FILE has all)"


def _forecast(forecast: MemoryForecast | None) -> Iterator[str]:
    if forecast is None:
        return
    yield ""
    yield f"  Forecast of GPU memory for training {forecast.config} in fp32, in GiB (not measured on a GPU)"
    images = "".join(f"{count:>8}" for count, _ in forecast.typical)
    yield f"  {'images per GPU':<36}{images}"
    rows = [("typical images", forecast.typical_size, forecast.typical)]
    if forecast.largest_size != forecast.typical_size:
        rows.append(("padded to the largest", forecast.largest_size, forecast.largest))
    for label, size, column in rows:
        values = "".join(f"{gib:>8.1f}" for _, gib in column)
        yield f"  {f'{label}, {size[0]} x {size[1]}':<36}{values}"
    yield (
        "  From: 16 bytes per parameter, what autograd keeps (counted on small images, a straight line in the pixels),"
    )
    yield f"  and {OVERHEAD:.0%} for the moment's needs. bf16 (train.amp.enabled=True) takes less."


def _what_to_do(report: DatasetReport) -> Iterator[str]:
    faults = report.faults
    if not faults:
        yield "Nothing is wrong." if report.opened else "Nothing is wrong with the annotations."
        if report.image_root is None and report.json_file is not None:
            yield "Image files were not looked for: --images FOLDER says where they are."
        elif not report.opened:
            yield "Image files were not opened: --open-images compares their sizes, --decode-images finds damaged ones."
        return
    total = sum(len(problem.places) for problem in faults)
    kinds = ", ".join(dict.fromkeys(problem.kind for problem in faults))
    yield from _wrapped(f"{total:,} fault{'' if total == 1 else 's'}: {kinds}.", indent="")
    if report.stops_training:
        is_error = any(problem.severity == "error" for problem in faults)
        what = "the errors: mend them" if is_error else "what stops evaluation on the validation data: mend it"
        yield f"Training stops at {what} first."
    else:
        yield "Training can start; it leaves out what it cannot use."
    yield "--csv FILE lists every one of them, --fix NEW.json writes a json with those mended that can be."
