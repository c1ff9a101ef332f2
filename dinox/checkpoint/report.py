"""What became of a file's tensors: counts for each part of the model, and whether that is enough."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dinox.checkpoint.class_transfer import ClassTransfer, is_class_head, row_layouts
from dinox.checkpoint.reading import CheckpointError
from dinox.utils.names import backbone_prefix, is_pretrained
from dinox.utils.tables import format_table
from dinox.utils.text import compact_names, shortened

logger = logging.getLogger(__name__)

ENOUGH = 0.9
"""Part of the tensors that has to find its place. Less is no fine-tuning but another architecture."""

Purpose = Literal["train", "partial", "evaluate", "resume"]

_SHOWN = 3  # names in a one-line message
_LINES = 12  # of names in a list
_LENGTH = 300  # characters of a list


@dataclass(frozen=True)
class ModuleCount:
    """Tensors of one part of the model, or of the file where the model has no such part (``model`` is 0 then).

    model = loaded + missing + other_shape + by_class. unexpected: of the file alone.
    """

    module: str
    model: int = 0
    loaded: int = 0
    by_class: int = 0
    missing: int = 0
    other_shape: int = 0
    unexpected: int = 0

    @property
    def fate(self) -> str | None:
        """What happened to all of them; None if not the same."""
        kinds = [kind for kind in _KINDS if getattr(self, kind)]
        return kinds[0] if len(kinds) == 1 else None

    @staticmethod
    def total(name: str, counts: Iterable[ModuleCount]) -> ModuleCount:
        counts = list(counts)
        return ModuleCount(name, *(sum(getattr(each, kind) for each in counts) for kind in ("model", *_KINDS)))


_KINDS = ("loaded", "by_class", "missing", "other_shape", "unexpected")


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors. A tensor that several modules share counts once, under its first name.

    loaded: names in the model. missing: in the model, not in the file. unexpected: in the file, not in the model.
    mismatched: (name, shape in the file, shape in the model). class_heads: those of the mismatched that differ in the
    classes only; they stay as initialised. file_tensors: number of tensors in the file. training_only: those of the
    missing that detection does not need (auxiliary heads, positive queries). by_class: filled row by row, each class
    with that of its name; classes: which these are. modules: counts for each part of the model, and of its parts.
    """

    path: str
    loaded: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
    class_heads: Sequence[str]
    file_tensors: int
    training_only: Sequence[str] = ()
    by_class: Sequence[str] = ()
    classes: ClassTransfer | None = None
    modules: Sequence[ModuleCount] = ()

    @property
    def model_names(self) -> list[str]:
        return [*self.loaded, *self.by_class, *self.missing, *(name for name, *_ in self.mismatched)]

    @property
    def model_tensors(self) -> int:
        return len(self.model_names)

    @property
    def is_complete(self) -> bool:
        return len(self.loaded) == self.model_tensors

    @property
    def is_complete_for_detection(self) -> bool:
        return len(self.loaded) + len(self.training_only) == self.model_tensors

    @property
    def is_detector(self) -> bool:
        """The file fills the model, class heads for other classes and what only training needs excepted."""
        excepted = len(self.class_heads) + len(self.by_class) + len(self.training_only)
        return len(self.loaded) >= ENOUGH * (self.model_tensors - excepted) and len(self.loaded) > 0

    @property
    def is_backbone(self) -> bool:
        """The file fills our backbone and holds little else (ImageNet weights bring their classifier).

        Norms of the backbone's outputs are the detector's, and no file has to have them.
        """
        model = self.model_names
        prefix = backbone_prefix(model)
        return (
            len(self.loaded) > 0
            and all(name.startswith(prefix) for name in self.loaded)
            and len(self.loaded) >= ENOUGH * sum(is_pretrained(name, prefix) for name in model)
            and len(self.loaded) >= ENOUGH * self.file_tensors
        )

    def summary(self) -> str:
        """One line with all counts."""
        return (
            f"{len(self.loaded)} of the model's {self.model_tensors} tensors loaded, "
            f"{f'{len(self.by_class)} by class name, ' if self.by_class else ''}{len(self.missing)} missing"
            f"{f' ({len(self.training_only)} of them for training only)' if self.training_only else ''}, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape"
        )


# ------------------------------------------------------------------------------------------------------------- counting


def make_report(
    path: str, model: nn.Module, incompatible: Any, file_tensors: int, classes: ClassTransfer | None = None
) -> LoadReport:
    """``incompatible``: what fvcore's Checkpointer returns. file_tensors: in the file."""
    mismatched = {name: (tuple(in_file), tuple(in_model)) for name, in_file, in_model in incompatible.incorrect_shapes}
    tensors = model.state_dict(keep_vars=True)
    if classes is not None:  # whatever their shapes are
        mismatched |= {name: (shape, tuple(tensors[name].shape)) for name, shape in classes.refused.items()}
    fates: dict[str, list[str]] = {kind: [] for kind in ("loaded", "by_class", "missing", "mismatched")}
    for names in _aliases(tensors):
        name, fate = _fate(names, {*incompatible.missing_keys}, mismatched, classes)
        fates[fate].append(name)
    layouts, unexpected = row_layouts(model), list(incompatible.unexpected_keys)
    return LoadReport(
        path=path,
        loaded=fates["loaded"],
        missing=fates["missing"],
        unexpected=unexpected,
        mismatched=[(name, *mismatched[name]) for name in fates["mismatched"]],
        class_heads=[name for name in fates["mismatched"] if is_class_head(name, layouts, *mismatched[name])],
        file_tensors=file_tensors,
        training_only=_training_only(model, fates["missing"]),
        by_class=fates["by_class"],
        classes=classes,
        modules=_count_modules(model, {**fates, "other_shape": fates["mismatched"], "unexpected": unexpected}),
    )


def _fate(
    names: Sequence[str], missing: set[str], mismatched: Mapping[str, Any], classes: ClassTransfer | None
) -> tuple[str, str]:
    """Of one tensor with all of its names: the name to report, and what became of it."""
    if classes is not None and classes.tensors.intersection(names):
        return names[0], "by_class"
    if not {*missing, *mismatched}.issuperset(names):
        return names[0], "loaded"
    other_shape = next((name for name in names if name in mismatched), None)
    return (names[0], "missing") if other_shape is None else (other_shape, "mismatched")


def _aliases(tensors: Mapping[str, Any]) -> Iterable[list[str]]:
    """The names of each tensor of a state dict: several where modules share it."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return names.values()


def _training_only(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that belong to parts that are there for training only."""
    parts = tuple(f"{name}." for name, part in model.named_modules() if getattr(part, "training_only", False) is True)
    return [name for name in names if name.startswith(parts)]


def _count_modules(model: nn.Module, fates: Mapping[str, Sequence[str]]) -> list[ModuleCount]:
    """For each part of the model and each part of these, in the model's order; what is unexpected follows."""
    counts: dict[str, dict[str, int]] = {_module_of(name): {} for name in model.state_dict()}
    for kind in _KINDS:
        for name in fates[kind]:
            count = counts.setdefault(_module_of(name), {})
            count[kind] = count.get(kind, 0) + 1
    found = [
        ModuleCount(module, model=sum(count.values()) - count.get("unexpected", 0), **count)
        for module, count in counts.items()
        if count
    ]
    order = {top: place for place, top in enumerate(dict.fromkeys(_top(each.module) for each in found))}
    return sorted(found, key=lambda each: order[_top(each.module)])


def _module_of(name: str) -> str:
    """``encoder.layers`` for ``encoder.layers.0.norm1.weight``; ``heads`` for ``heads.0.weight``."""
    parts = name.split(".")
    depth = 2 if len(parts) > 2 and not parts[1].isdigit() else 1
    return ".".join(parts[:depth])


def _top(module: str) -> str:
    return module.partition(".")[0]


# ------------------------------------------------------------------------------------------------------------- judging


def require(report: LoadReport, purpose: Purpose) -> None:
    """Raise CheckpointError if too little was loaded.

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
    if purpose == "train":
        if not (report.is_detector or report.is_backbone):
            enough = f"at least {ENOUGH:.0%} of the model's or of the backbone's tensors"
            raise CheckpointError(
                _explain(report, f"training starts from {enough}, unless train.allow_partial=True is set")
            )
    elif purpose == "partial":
        if not report.loaded:
            raise CheckpointError(_explain(report, "training starts from at least one of them"))
    elif not (report.is_complete_for_detection if purpose == "evaluate" else report.is_complete):
        raise CheckpointError(_explain(report, f"to {purpose} takes all of them"))


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
        logger.info("Classes of %s and of the training data:\n%s", report.path, format_classes(report))
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
        logger.warning("Not in %s, initialised anew: %s", report.path, names)
    rows = [(names, str(file), str(here)) for names, file, here in _by_shapes(report, class_heads=False)]
    if rows:
        table = format_table(["of another shape", "file", "here"], rows[:_LINES])
        more = f"\n... ({len(rows) - _LINES} more lines)" if len(rows) > _LINES else ""
        logger.warning("Not taken from %s, initialised anew:\n%s%s", report.path, table, more)
    if report.unexpected:
        in_both = set(report.model_names) - set(report.missing)
        names = _lines(compact_names(report.unexpected, among=[*in_both, *report.unexpected]))
        logger.warning("In %s, but not in the model: %s", report.path, names)


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
    """One line where they are few."""
    if len(patterns) <= _SHOWN:
        return ", ".join(patterns)
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
    rows = list(_grouped(report.modules))
    rows.append(ModuleCount.total("all", report.modules))
    kinds = ["model", *(kind for kind in titles if kind == "loaded" or getattr(rows[-1], kind))]
    cells = [[row.module, *(str(getattr(row, kind) or "") for kind in kinds)] for row in rows]
    return format_table(["module", "tensors", *(titles[kind] for kind in kinds[1:])], cells)


def _grouped(counts: Sequence[ModuleCount]) -> Iterable[ModuleCount]:
    for top in dict.fromkeys(_top(each.module) for each in counts):
        parts = [each for each in counts if _top(each.module) == top]
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
    if not report.by_class:
        return f"{table}\nNo tensor of the file has rows for these classes."
    names = compact_names(report.by_class, among=report.model_names)
    return f"{table}\nIn {len(report.by_class)} tensors: {shortened(names, length=_LENGTH)}"
