"""Weights from files, through detectron2's DetectionCheckpointer, with an account of what was loaded.

detectron2 matches what it can and goes on; a file of another architecture, or one whose names changed, then trains from
random numbers in silence. Here every load is counted, and too little is an error.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dinox.checkpoint import run_files
from dinox.checkpoint.class_transfer import (
    ClassTransfer,
    as_tensors,
    check_same_classes,
    has_class_rows,
    take_classes_by_name,
)
from dinox.checkpoint.description import parse_description
from dinox.checkpoint.judging import log_report, require
from dinox.checkpoint.pretrained import read_pretrained
from dinox.checkpoint.reading import (
    EMA,
    CheckpointError,
    LocalFile,
    averaged_weights,
    check_weights,
    local_file,
    read_checkpoint,
)
from dinox.checkpoint.report import LoadReport, Purpose, make_report
from dinox.checkpoint.tensor_files import ENTRY
from dinox.utils.sharded_tensors import has_shards, sharded_like, whole_state

logger = logging.getLogger(__name__)

_HEURISTICS = "matching_heuristics"
"""detectron2's key of files whose names have to be guessed."""


class Checkpointer(DetectionCheckpointer):
    """DetectionCheckpointer that reads tensors and numbers only, explains what it cannot read, and keeps a report.

    Its files are those of the stock class, both ways. In files of runs with ``train.ema``, the stock class sees the
    weights of the last step, "model".
    """

    report: LoadReport | None = None
    """Of the last ``load``."""

    description: dict[str, Any] | None = None
    """What the files say about themselves, see ``dinox.checkpoint.describe``."""

    _their_names: Sequence[str] | None = None
    _gathered: dict[str, Any] | None = None

    _written: str | None = None
    """The file that this object tagged."""

    def save(self, name: str, **kwargs: Any) -> None:
        """The stock method, whole or not at all (see ``run_files``); the file gets the ``description`` as well.

        Raises CheckpointError if the disk is full or breaks.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if self._gathered is None:
            assert not has_shards(self.model), "save() of sharded weights belongs inside gathered(), on all ranks"
        content = self._states() if self._gathered is None else self._gathered
        content |= {} if self.description is None else {ENTRY: self.description}
        file = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", file)
        run_files.save(content | kwargs, file)
        self.tag_last_checkpoint(file.name)

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """The model alone, with the ``description``, into a file that nobody resumes from: it is not tagged. To be
        called on all ranks.

        Raises CheckpointError as ``save``; what was there is kept.
        """
        weights = whole_state(self.model.state_dict(), keep=self.save_to_disk)
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": weights} | ({} if self.description is None else {ENTRY: self.description})
        run_files.save(content | kwargs, Path(self.save_dir) / f"{name}.pth")

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Around ``save``, on all ranks: what it writes, with whole tensors where the ranks have parts of them."""
        if not has_shards(self.model):
            yield
            return
        self._gathered = whole_state(self._states(), keep=self.save_to_disk)
        try:
            yield
        finally:
            self._gathered = None

    def _states(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()} | {
            key: part.state_dict() for key, part in self.checkpointables.items()
        }

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

    def load(
        self,
        path: str,
        *args: Any,
        purpose: Purpose | None = None,
        class_names: Sequence[str] | None = None,
        ema: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The stock method, which takes any file; with a ``purpose``, only what is enough for it (see ``require``).

        class_names: of the data that the model is trained on, by class index; by default those of the ``description``.
        Weights to start from take theirs by name (``dinox.checkpoint.class_transfer``), and a run is resumed with the
        same ones only.

        ema: take the averaged weights, where the file holds some. A run is resumed with its own ones.
        """
        # Of a URL the copy that was checked, not one that detectron2 would fetch without.
        file = local_file(path) if path else LocalFile(path)
        self._path, self._purpose, self._ema = path, purpose, ema
        self._class_names = class_names or (self.description or {}).get("class_names")
        # Own runs write what they resume; a digest names one known file.
        self._trusted = purpose == "resume" or file.verified
        rest = super().load(file.path, *args, **kwargs)
        if purpose == "resume" and EMA in rest and EMA not in self.checkpointables:
            logger.warning("%s holds averaged weights, which are left behind: train.ema is not enabled", path)
        return rest

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
        # Names count as they are; heuristics are for detectron2's own files.
        named = checkpoint if "model" in checkpoint else {"model": checkpoint}
        return {key: value for key, value in named.items() if key != _HEURISTICS}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        averages = averaged_weights(checkpoint)
        if averages is not None and self._purpose != "resume":
            which = "averaged weights" if self._ema else "weights of the last step, not the averaged ones"
            logger.info("%s: taking the %s (it holds both)", self._path, which)
            checkpoint["model"] = averages if self._ema else checkpoint["model"]
        check_weights(checkpoint["model"], self._path)
        pretrained = read_pretrained(checkpoint["model"], self.model)
        if pretrained.summary():
            logger.info("%s: the weights of a network alone\n%s", self._path, pretrained.summary())
        weights, classes = self._with_own_classes(pretrained.weights, checkpoint)
        own = self.model.state_dict()
        weights = {name: sharded_like(x, own[name]) if name in own else x for name, x in weights.items()}
        incompatible = super()._load_model({**checkpoint, "model": weights})
        self.report = make_report(self._path, self.model, incompatible, pretrained.weights, classes)
        return incompatible

    def _with_own_classes(
        self, weights: Mapping[str, Any], checkpoint: Mapping[str, Any]
    ) -> tuple[dict[str, Any], ClassTransfer | None]:
        """Weights whose class rows are those of the model's classes, where both sides name their classes."""
        if self._purpose in (None, "evaluate"):
            return dict(weights), None
        self._their_names = parse_description(checkpoint.get(ENTRY, {}), origin=self._path).class_names
        theirs, ours = self._their_names, self._class_names
        if self._purpose == "resume":
            check_same_classes(theirs, ours, path=self._path)
        elif theirs is not None and ours is not None:
            return take_classes_by_name(as_tensors(weights), self.model, theirs=theirs, ours=ours)
        return dict(weights), None

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Called between the model and everything else, such as the optimizer, which would not fit either."""
        if self._purpose is not None:
            require(self.report, self._purpose)
        log_report(self.report)
        if self._purpose in ("train", "partial") and has_class_rows(self.report.loaded, self.model):
            self._warn_of_nameless_classes()

    def _warn_of_nameless_classes(self) -> None:
        nameless = ["the file"] if self._their_names is None else []
        nameless += ["the training data"] if self._class_names is None else []
        if nameless:
            logger.warning(
                "Class k of %s is taken to be class k of the training data, since %s %s no names of classes. If it is "
                "another one, it starts from wrong weights",
                self._path,
                " and ".join(nameless),
                "have" if len(nameless) > 1 else "has",
            )


def load_weights(
    model: nn.Module,
    path: str,
    *,
    purpose: Purpose = "train",
    class_names: Sequence[str] | None = None,
    ema: bool = True,
) -> LoadReport:
    """Load a file into ``model``, say what was loaded, and check that it is enough for the purpose (see ``require``).

    class_names: of the data that the model is to be trained on, by class index. A file that names its classes too gives
    each class the weights of its name (see ``Checkpointer.load``).

    ema: of a file that holds both, take the averaged weights, not those of the last step.

    Raises CheckpointError: the file is missing, unreadable, unsafe, holds NaN or infinity, or is of another
    architecture. The model must not be used after that.
    """
    checkpointer = Checkpointer(model)
    checkpointer.load(path, checkpointables=[], purpose=purpose, class_names=class_names, ema=ema)
    return checkpointer.report


def _from_pickle(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """detectron2's own files say who wrote them; Caffe2's are bare dictionaries whose names have to be translated."""
    if "model" in checkpoint and "__author__" in checkpoint:
        return checkpoint
    blobs = checkpoint.get("blobs", checkpoint)
    check_weights(blobs, path)
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", _HEURISTICS: True}
