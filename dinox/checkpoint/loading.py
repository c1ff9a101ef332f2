"""Weights from files, through detectron2's DetectionCheckpointer, with an account of what was loaded.

detectron2 matches what it can and goes on; a file of another architecture, or one whose names changed, then trains from
random numbers in silence. Here every load is counted, and too little is an error.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dinox.checkpoint import run_files
from dinox.checkpoint.pretrained import read_pretrained
from dinox.checkpoint.reading import CheckpointError, LocalFile, check_weights, local_file, read_checkpoint
from dinox.checkpoint.tensor_files import ENTRY
from dinox.utils.names import backbone_prefix, is_pretrained
from dinox.utils.tables import format_table

logger = logging.getLogger(__name__)

ENOUGH = 0.9
"""Part of the tensors that has to find its place. Less is no fine-tuning but another architecture."""

CLASS_HEAD = re.compile(r"class|label")
"""Names of the tensors that depend on the number of classes: prediction heads and label embeddings."""

Purpose = Literal["train", "partial", "evaluate", "resume"]

_SHOWN = 3  # names in a one-line message


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors. A tensor that several modules share counts once, under its first name.

    loaded: names in the model. missing: in the model, not in the file. unexpected: in the file, not in the model.
    mismatched: (name, shape in the file, shape in the model). class_heads: those of the mismatched that differ in the
    number of classes only; they stay as initialised. file_tensors: number of tensors in the file. training_only: those
    of the missing that detection does not need (auxiliary heads, positive queries).
    """

    path: str
    loaded: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
    class_heads: Sequence[str]
    file_tensors: int
    training_only: Sequence[str] = ()

    @property
    def model_tensors(self) -> int:
        return len(self.loaded) + len(self.missing) + len(self.mismatched)

    @property
    def is_complete(self) -> bool:
        return len(self.loaded) == self.model_tensors

    @property
    def is_complete_for_detection(self) -> bool:
        return len(self.loaded) + len(self.training_only) == self.model_tensors

    @property
    def is_detector(self) -> bool:
        """The file fills the model, class heads for other classes and what only training needs excepted."""
        excepted = len(self.class_heads) + len(self.training_only)
        return len(self.loaded) >= ENOUGH * (self.model_tensors - excepted) and len(self.loaded) > 0

    @property
    def is_backbone(self) -> bool:
        """The file fills our backbone and holds little else (ImageNet weights bring their classifier).

        Norms of the backbone's outputs are the detector's, and no file has to have them.
        """
        model = [*self.loaded, *self.missing, *(name for name, *_ in self.mismatched)]
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
            f"{len(self.loaded)} of the model's {self.model_tensors} tensors loaded, {len(self.missing)} missing"
            f"{f' ({len(self.training_only)} of them for training only)' if self.training_only else ''}, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape"
        )


class Checkpointer(DetectionCheckpointer):
    """DetectionCheckpointer that reads tensors and numbers only, explains what it cannot read, and keeps a report.

    Its files are those of the stock class, both ways.
    """

    report: LoadReport | None = None
    """Of the last ``load``."""

    description: dict[str, Any] | None = None
    """What the files say about themselves, see ``dinox.checkpoint.describe``."""

    _written: str | None = None
    """The file that this object tagged."""

    def save(self, name: str, **kwargs: Any) -> None:
        """The stock method, whole or not at all (see ``run_files``); the file gets the ``description`` as well.

        Raises CheckpointError if the disk is full or breaks.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        content |= {} if self.description is None else {ENTRY: self.description}
        file = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", file)
        run_files.save(content | kwargs, file)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        run_files.tag(self.save_dir, last_filename_basename)
        self._written = last_filename_basename

    def has_checkpoint(self) -> bool:
        """Also without a tag: a run may have been killed before it wrote its first."""
        folder = Path(self.save_dir)
        return folder.is_dir() and ((folder / run_files.TAG).exists() or bool(run_files.newest_first(folder)))

    def get_checkpoint_file(self) -> str:
        """The last one, verified (see ``run_files.last_whole``, and for errors); an empty text if there is none."""
        tagged = run_files.tagged_file(Path(self.save_dir))
        if tagged is not None and tagged.name == self._written:  # asked after each save: nobody else writes there
            return str(tagged)
        return str(run_files.last_whole(self.save_dir) or "")

    def load(self, path: str, *args: Any, purpose: Purpose | None = None, **kwargs: Any) -> dict[str, Any]:
        """The stock method, which takes any file; with a ``purpose``, only what is enough for it (see ``require``)."""
        # Of a URL the copy that was checked, not one that detectron2 would fetch without.
        file = local_file(path) if path else LocalFile(path)
        self._path, self._purpose = path, purpose
        # Own runs write what they resume; a digest names one known file.
        self._trusted = purpose == "resume" or file.verified
        return super().load(file.path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Replaces the stock methods of v0.6 and main, which unpickle anything."""
        try:
            checkpoint = read_checkpoint(filename, trusted=self._trusted)
        except CheckpointError as error:
            if filename == self._path:
                raise
            raise CheckpointError(
                f"{error} (this is the cached copy of {self._path}: remove it to fetch it anew)"
            ) from error
        if filename.endswith(".pkl"):
            return _from_pickle(checkpoint, self._path)
        return checkpoint if "model" in checkpoint else {"model": checkpoint}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        check_weights(checkpoint["model"], self._path)
        pretrained = read_pretrained(checkpoint["model"], self.model)
        if pretrained.summary():
            logger.info("%s: the weights of a network alone\n%s", self._path, pretrained.summary())
        checkpoint = {**checkpoint, "model": pretrained.weights}
        incompatible = super()._load_model(checkpoint)
        self.report = _make_report(self._path, self.model, incompatible, len(pretrained.weights))
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Called between the model and everything else, such as the optimizer, which would not fit either."""
        if self._purpose is not None:
            require(self.report, self._purpose)
        log_report(self.report)


def load_weights(model: nn.Module, path: str, *, purpose: Purpose = "train") -> LoadReport:
    """Load a file into ``model``, say what was loaded, and check that it is enough for the purpose (see ``require``).

    Raises CheckpointError: the file is missing, unreadable, unsafe, holds NaN or infinity, or is of another
    architecture. The model must not be used after that.
    """
    checkpointer = Checkpointer(model)
    checkpointer.load(path, checkpointables=[], purpose=purpose)
    return checkpointer.report


def require(report: LoadReport, purpose: Purpose) -> None:
    """Raise CheckpointError if too little was loaded.

    "resume" needs every tensor of the model, and "evaluate" all but those of parts that are there for training only
    (a part says so by an attribute ``training_only``). "train" takes weights to start from, and tells by their
    content what they are:

    * a detector's checkpoint: fills at least 90 % of the model's tensors. Class heads of another number of classes do
      not count, are listed, and stay as initialised;
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


def log_report(report: LoadReport) -> None:
    """What was loaded, and what was not, into the log."""
    only = " (a backbone; everything else is as initialised)" if report.is_backbone else ""
    logger.info("%s: %s%s", report.path, report.summary(), only)
    if report.class_heads:
        rows = [(name, str(in_file[0]), str(here[0])) for name, in_file, here in report.mismatched]
        rows = [row for row in rows if row[0] in report.class_heads]
        table = format_table(["heads for another number of classes", "file", "here"], rows)
        logger.info("Initialised anew:\n%s", table)
    if report.is_detector or not report.is_backbone:
        rest = [name for name in report.missing if name not in report.training_only]
        rest += [name for name, *_ in report.mismatched if name not in report.class_heads]
        if report.training_only:
            names = ", ".join(report.training_only)
            logger.info("Not in %s, and for training only, where they start anew: %s", report.path, names)
        if rest:
            logger.warning("Not in %s, initialised anew: %s", report.path, ", ".join(rest))
        if report.unexpected:
            logger.warning("In %s, but not in the model: %s", report.path, ", ".join(report.unexpected))


def _from_pickle(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """detectron2's own files say who wrote them; Caffe2's are bare dictionaries whose names have to be translated."""
    if "model" in checkpoint and "__author__" in checkpoint:
        return checkpoint
    blobs = checkpoint.get("blobs", checkpoint)
    check_weights(blobs, path)
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _make_report(path: str, model: nn.Module, incompatible: Any, file_tensors: int) -> LoadReport:
    mismatched = {name: (tuple(in_file), tuple(in_model)) for name, in_file, in_model in incompatible.incorrect_shapes}
    absent = {*incompatible.missing_keys, *mismatched}
    loaded, missing, other_shape = [], [], []
    for names in _aliases(model):
        if not absent.issuperset(names):
            loaded.append(names[0])
        elif mismatched.keys() & set(names):
            other_shape.append(next(name for name in names if name in mismatched))
        else:
            missing.append(names[0])
    return LoadReport(
        path=path,
        loaded=loaded,
        missing=missing,
        unexpected=list(incompatible.unexpected_keys),
        mismatched=[(name, *mismatched[name]) for name in other_shape],
        class_heads=[name for name in other_shape if _is_class_head(name, *mismatched[name])],
        file_tensors=file_tensors,
        training_only=_training_only(model, missing),
    )


def _training_only(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that belong to parts that are there for training only."""
    parts = tuple(f"{name}." for name, part in model.named_modules() if getattr(part, "training_only", False) is True)
    return [name for name in names if name.startswith(parts)]


def _aliases(model: nn.Module) -> Iterable[list[str]]:
    """The names of each tensor of the state dict: several where modules share it."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return names.values()


def _is_class_head(name: str, in_file: tuple[int, ...], in_model: tuple[int, ...]) -> bool:
    """Only the first dimension, that of the classes, differs."""
    return bool(CLASS_HEAD.search(name)) and len(in_file) == len(in_model) and in_file[1:] == in_model[1:]


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
