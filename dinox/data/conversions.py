"""An account of images that lose something on the way to 8-bit RGB: a warning for the first, and counts.

A process has one account at a time: images come to it from training, from evaluations on the way, from prediction.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Flag, auto
from os import PathLike, fspath

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class Conversion(Flag):
    """What was lost on the way to 8-bit RGB, and is worth telling."""

    NONE = 0
    DEPTH = auto()
    ALPHA = auto()
    FRAMES = auto()


CONVERSIONS = "conversions"
"""The key under which ``DetectionMapper`` leaves the conversions of an image, if there are any."""

_DESCRIPTIONS = {
    Conversion.DEPTH: "gray with more than 8 bits per pixel, which are scaled to 8",
    Conversion.ALPHA: "with transparency, which is dropped",
    Conversion.FRAMES: "with several frames, of which the first is taken",
}

_files: dict[Conversion, set[str]] = {}


def count_conversions(path: str | PathLike, conversions: Conversion) -> None:
    """Add one image to the account; any number of times is the same as once."""
    for kind, description in _DESCRIPTIONS.items():
        if kind not in conversions:
            continue
        if kind not in _files:
            logger.warning(
                "Image %s is converted on reading: %s. Others like it are counted, and not named.", path, description
            )
        _files.setdefault(kind, set()).add(fspath(path))


def count_conversions_of(batch: Iterable[Mapping]) -> None:
    """Add a batch of a mapper's outputs, which may come from a DataLoader's worker processes."""
    for sample in batch:
        if CONVERSIONS in sample:
            count_conversions(sample["file_name"], sample[CONVERSIONS])


@contextmanager
def conversions_counted() -> Iterator[None]:
    """A new account, whose counts are logged at the end unless there was an error. All ranks have to take part."""
    _files.clear()
    yield
    files: dict[Conversion, set[str]] = {}
    for rank in comm.all_gather(_files):
        for kind, names in rank.items():
            files.setdefault(kind, set()).update(names)
    counts = [f"{len(files[kind])} {text}" for kind, text in _DESCRIPTIONS.items() if kind in files]
    if counts:
        logger.warning("Images converted on reading: %s", "; ".join(counts))
