"""Whether what was loaded is enough, and what the log says of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from dinox.checkpoint.reading import CheckpointError
from dinox.checkpoint.report import ENOUGH, LoadReport, ModuleCount, Purpose, top_module
from dinox.utils.tables import format_table
from dinox.utils.text import compact_names, shortened

logger = logging.getLogger(__name__)

_SHOWN = 3  # names in a one-line message
_LINES = 12  # of names in a list
_LENGTH = 300  # characters of a list


def require(report: LoadReport, purpose: Purpose) -> None:
    """Raise CheckpointError if too little was loaded; the log has the counts of each part then.

    "resume" needs every tensor of the model, and "evaluate" all but those of parts that are there for training only
    (a part says so by an attribute ``training_only``). "train" takes weights to start from, and tells by their
    content what they are:

    * a detector's checkpoint: fills at least 90 % of the model's tensors. Class heads of other classes do not count,
      neither here nor there, and are listed: they take what they can by the names of the classes, and the rest of them
      stays as initialised;
    * a backbone (``detectron2://ImageNetPretrained/torchvision/R-50.pkl``): at least 90 % of the file's tensors fill
      at least 90 % of the model's backbone. The statistics of the pixels have to be those of the file: torchvision's
      are RGB with mean 123.675, 116.28, 103.53 and std 58.395, 57.12, 57.375, MSRA's are BGR with mean 103.53,
      116.28, 123.675 and std 1.

    "partial" takes any tensor that fits, if there is one.
    """
    expected = _shortfall(report, purpose)
    if expected is not None:
        logger.info("%s:\n%s", report.path, format_modules(report))
        raise CheckpointError(_explain(report, expected))


def _shortfall(report: LoadReport, purpose: Purpose) -> str | None:
    """What it would have taken; None if it is enough."""
    if purpose == "train":
        enough = f"at least {ENOUGH:.0%} of the model's or of the backbone's tensors"
        fits = report.is_detector or report.is_backbone
        return None if fits else f"training starts from {enough}, unless train.allow_partial=True is set"
    if purpose == "partial":
        return None if report.loaded else "training starts from at least one of them"
    fits = report.is_complete_for_detection if purpose == "evaluate" else report.is_complete
    return None if fits else f"to {purpose} takes all of them"


def _explain(report: LoadReport, expected: str) -> str:
    examples = []
    for title, names in (("missing", report.missing), ("unexpected", report.unexpected)):
        if names:
            examples.append(f"{title}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}")
    for name, in_file, in_model in report.mismatched[:_SHOWN]:
        examples.append(f"{name}: {in_file} in the file, {in_model} in the model")
    return (
        f"checkpoint {report.path} is not of this model: {report.summary()}; {expected} ({'; '.join(examples)}). "
        "Take the config that the file was trained with; if it is another project's, convert it (dinox convert, or "
        "dinox.checkpoint.convert)"
    )


# -------------------------------------------------------------------------------------------------------------- telling


def log_report(report: LoadReport) -> None:
    """What was loaded, and what was not, into the log."""
    only = " (a backbone; everything else is as initialised)" if report.is_backbone else ""
    logger.info("%s: %s%s\n%s", report.path, report.summary(), only, format_modules(report))
    if report.classes is not None:
        level = logging.INFO if report.classes.taken else logging.WARNING
        logger.log(level, "Classes of %s and of the training data:\n%s", report.path, format_classes(report))
    if report.class_heads:
        rows = [(names, str(file[0]), str(here[0])) for names, file, here in _by_shapes(report, class_heads=True)]
        table = format_table(["heads for another number of classes", "file", "here"], rows)
        logger.info("Initialised anew:\n%s", table)
    if report.is_detector or not report.is_backbone:
        _log_rest(report)


def _log_rest(report: LoadReport) -> None:
    if report.training_only:
        names = ", ".join(compact_names(report.training_only, among=report.model_names))
        logger.info("Not in %s, and for training only, where they start anew: %s", report.path, names)
    training_only = set(report.training_only)
    missing = [name for name in report.missing if name not in training_only]
    if missing:
        names = _lines(compact_names(missing, among=report.model_names))
        logger.warning("Not in %s, initialised anew:%s", report.path, names)
    rows = [(names, str(file), str(here)) for names, file, here in _by_shapes(report, class_heads=False)]
    if rows:
        table = format_table(["of another shape", "file", "here"], rows[:_LINES])
        more = f"\n... ({len(rows) - _LINES} more lines)" if len(rows) > _LINES else ""
        logger.warning("Not taken from %s, initialised anew:\n%s%s", report.path, table, more)
    if report.unexpected:
        in_both = set(report.model_names) - set(report.missing)
        names = _lines(compact_names(report.unexpected, among=[*in_both, *report.unexpected]))
        logger.warning("In %s, but not in the model:%s", report.path, names)


def _by_shapes(report: LoadReport, *, class_heads: bool) -> Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Names, in short, of those of another shape which have the same ones; and these, in the file and here."""
    by_shapes: dict[tuple, list[str]] = {}
    for name, *shapes in report.mismatched:
        if (name in report.class_heads) == class_heads:
            by_shapes.setdefault(tuple(shapes), []).append(name)
    for shapes, names in by_shapes.items():
        for pattern in compact_names(names, among=report.model_names):
            yield pattern, *shapes


def _lines(patterns: Sequence[str]) -> str:
    """What follows a colon: on the same line where they are few."""
    if len(patterns) <= _SHOWN:
        return f" {', '.join(patterns)}"
    more = [f"... ({len(patterns) - _LINES} more lines)"] if len(patterns) > _LINES else []
    return "\n  " + "\n  ".join([*patterns[:_LINES], *more])


def format_modules(report: LoadReport) -> str:
    """A table with a row for each part of the model, and one for each of its parts where these fared differently, or
    have names of their own, as query groups and auxiliary heads have. Columns and cells of zeros are left out."""
    titles = {
        "loaded": "loaded",
        "by_class": "by class name",
        "missing": "missing",
        "other_shape": "other shape",
        "unexpected": "unexpected",
    }
    total = ModuleCount.total("all", report.modules)
    kinds = ["model", *(kind for kind in titles if kind == "loaded" or getattr(total, kind))]
    cells = [[row.module, *(str(getattr(row, kind) or "") for kind in kinds)] for row in _grouped(report.modules)]
    cells.append([total.module, *(str(getattr(total, kind)) for kind in kinds)])
    return format_table(["module", "tensors", *(titles[kind] for kind in kinds[1:])], cells)


def _grouped(counts: Sequence[ModuleCount]) -> Iterable[ModuleCount]:
    for top in dict.fromkeys(top_module(each.module) for each in counts):
        parts = [each for each in counts if top_module(each.module) == top]
        fates = {each.fate for each in parts}
        if len(fates) == 1 and None not in fates and top not in _NAMED:
            yield ModuleCount.total(top, parts)
        else:
            yield from parts


_NAMED = ("query_groups", "auxiliary_heads")
"""Parts of the model whose own parts are named by the config."""


def format_classes(report: LoadReport) -> str:
    """How many classes take rows by name, and which; and in which tensors."""
    classes = report.classes
    rows = [
        (title, str(len(names)), shortened(names))
        for title, names in (
            ("taken over by name", classes.taken),
            ("new, as initialised", classes.new),
            ("of the file, not used", classes.unused),
        )
    ]
    table = format_table(["classes", "number", "names"], rows, texts=(0, 2))
    if not classes.taken:
        return f"{table}\nNone of the names is the same: the class heads start anew."
    if not report.by_class:
        return f"{table}\nNo tensor of the file has rows for these classes."
    names = compact_names(report.by_class, among=report.model_names)
    return f"{table}\nIn {len(report.by_class)} tensors: {shortened(names, length=_LENGTH)}"
