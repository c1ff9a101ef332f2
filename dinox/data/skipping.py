"""Training goes on when a few images cannot be read, and says which.

An image that is missing or damaged is replaced by another one of the dataset. Which one depends on nothing but its
place in the dataset: not on workers, on ranks, or on what was skipped before, so that a run can be repeated.
"""

import csv
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset

from dinox.data.conversions import count_conversions_of
from dinox.data.copy_paste import CopyPaste
from dinox.data.errors import DataError, UnreadableImage
from dinox.data.images import CAUSES
from dinox.data.left_out import entries_left_out
from dinox.data.position import VISIT, Position, PositionCounter
from dinox.data.sampling import NumberedSampler, Visit
from dinox.data.workers import LOST_WORKER, handed_over, is_lost_worker
from dinox.utils.random_state import seeded_random_state, unchanged_random_state
from dinox.utils.whole_files import written_whole

logger = logging.getLogger(__name__)

REPORT_PERIOD = 20
"""Batches from one report to the next: ranks tell each other what they skipped, and the list is written."""

DEFAULT_MAX_BAD = 0.01
SKIPPED_FILE = "skipped.csv"
CHECKPOINT_MARK = "last_checkpoint"
"""The file in which detectron2 names the last checkpoint of a folder."""
_COLUMNS = ["path", "image id", "cause"]
_LISTED = 10


class ReadableImages(Dataset):
    """Mapped dataset dicts. In place of an image that cannot be read comes another one.

    Args:
        records: dataset dicts.
        mapper: from a dict to a model's input. It raises UnreadableImage for images that may be replaced.
        max_bad: the share of the images that may be bad, 0 to 1; rounded up to a number of images, of which one at
            least has to be good.
        copy_paste: puts objects of a second image, drawn for every visit (see ``Visit``), upon the first; or None.

    An image that is asked for by a ``Visit`` is augmented as ``seed`` and the number of the visit say: the same in any
    process, and whatever came before. It tells the number under ``VISIT``.
    """

    seed = 0

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Callable[[dict], dict],
        *,
        max_bad: float,
        copy_paste: CopyPaste | None = None,
    ) -> None:
        if len(records) == 0:
            raise DataError("The training data is empty: expected at least one image.")
        self.max_bad = max_bad
        self.most_bad = most_bad_images(len(records), max_bad)
        self.left_out = entries_left_out(records)
        self._records = DatasetFromList(list(records), copy=False)
        self._mapper = mapper
        self._copy_paste = copy_paste
        # One byte per image, 0 or the number of the cause. Worker processes write into the memory of the main one.
        self._causes = torch.zeros(len(records), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        number = index.number if isinstance(index, Visit) else None
        image = self._readable(index, number)
        if self._copy_paste is not None:
            generator = self._copy_paste.generator(int(index), number or 0)
            other = self._readable(int(generator.integers(len(self))), number, is_pasted=True)
            image = self._copy_paste(image, other, generator)
        return handed_over(image if number is None else {**image, VISIT: number})

    def _readable(self, index: int, number: int | None, *, is_pasted: bool = False) -> dict:
        for candidate in _candidates(int(index), len(self)):
            if self._causes[candidate]:
                continue
            try:
                if number is None:
                    return self._mapper(self._records[candidate])
                with seeded_random_state(self.seed, number, int(is_pasted)):
                    return self._mapper(self._records[candidate])
            except UnreadableImage as error:
                self._causes[candidate] = CAUSES.index(error.cause) + 1
                if self.has_too_many():
                    raise TooManyBadImages(f"{error} Too many images like it.") from error
        raise TooManyBadImages("No image of the training data can be read.")

    def bad_images(self) -> list[tuple[int, str]]:
        """The place in the dataset and the cause of each, in the order of the dataset."""
        causes = self._causes.numpy()
        return [(int(index), CAUSES[causes[index] - 1]) for index in np.flatnonzero(causes)]

    def add_bad_images(self, images: Iterable[tuple[int, str]]) -> None:
        for index, cause in images:
            self._causes[index] = CAUSES.index(cause) + 1

    def num_bad(self) -> int:
        return int(np.count_nonzero(self._causes.numpy()))

    def has_too_many(self) -> bool:
        return self.num_bad() > self.most_bad

    def record(self, index: int) -> dict:
        return self._records[index]


def most_bad_images(total: int, max_bad: float) -> int:
    """How many of ``total`` images may be unreadable: the share, rounded up; one at least has to be good."""
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad: expected a share of the images from 0 to 1, got {max_bad!r}")
    return min(math.ceil(max_bad * total), max(total - 1, 0))


class TooManyBadImages(DataError):
    """More images than allowed cannot be read."""


def _candidates(index: int, total: int) -> Iterator[int]:
    """``index``, then all others in an order that is drawn from it."""
    yield index
    if total == 1:
        return
    generator = random.Random(index)
    step = generator.randrange(1, total)
    while math.gcd(step, total) != 1:  # only such steps come to all of them
        step = generator.randrange(1, total)
    for turn in range(1, total):
        yield (index + turn * step) % total


class SkippingLoader:
    """The batches of a training loader, with an account of the images that were left out on the way.

    Every ``REPORT_PERIOD`` batches all ranks agree on what they left out, so that all of them have to take batches
    together, as in training.

    Its ``state_dict`` is the position behind the last batch that was taken; after ``load_state_dict`` of all ranks'
    states, iterating goes on there, with the same batches whatever the number of workers.

    Args:
        loader: gives batches of ``dataset``, in this process or from workers.
        sampler: that ``loader`` takes its images from.
        output_dir: where ``skipped.csv`` lists the images that were left out (path, image id, cause), and those that
            lost boxes when they were loaded. The first rank writes it while the folder exists. A rank that has to end
            training writes its own, ``skipped.csv.rank1`` and so on. None: no list. A folder that holds a checkpoint is
            that of a run which is resumed: what is on its list stays there.
    """

    def __init__(
        self,
        loader: Iterable[list[dict]],
        dataset: ReadableImages,
        *,
        sampler: NumberedSampler,
        output_dir: str | PathLike | None = None,
    ) -> None:
        self.dataset = dataset
        self._loader, self._sampler = loader, sampler
        self._counter = PositionCounter(sampler.start)
        rank = "" if comm.is_main_process() else f".rank{comm.get_rank()}"  # as in the names of log files
        self._csv = None if output_dir is None else Path(output_dir) / f"{SKIPPED_FILE}{rank}"
        self._earlier = _rows_of_resumed_run(self._csv)
        self._told = self._listed = 0  # of the bad images, how many were in the log and on the list
        self.lost_workers = False
        """Did a worker's end keep it from giving the next batch? The position is still that behind the last one."""

    def __iter__(self) -> Iterator[list[dict]]:
        """Raises DataError when too many images cannot be read."""
        self.dataset.seed = self._sampler.seed
        self._counter = PositionCounter(self._sampler.start)
        with unchanged_random_state():  # a DataLoader draws a number when it begins, which a resumed one must not
            batches = iter(self._loader)
            first = self._next(batches)
        for number in count():
            batch = first if number == 0 else self._next(batches)
            if number % REPORT_PERIOD == 0 or self._is_news():
                self.report()
            self._update_list()
            if self.dataset.has_too_many():
                raise self._too_many()
            if batch is None:
                return
            count_conversions_of(batch)
            # From now on it counts as trained on: whoever takes it asks for the position after its step.
            self._counter.count([image.pop(VISIT) for image in batch])
            yield batch

    def _next(self, batches: Iterator[list[dict]]) -> list[dict] | None:
        try:
            return next(batches, None)
        except TooManyBadImages as error:
            raise self._too_many() from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            self.lost_workers = is_lost_worker(error)
            if isinstance(error, RuntimeError) or not self.lost_workers:
                raise
            raise RuntimeError(f"{LOST_WORKER} does not answer: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        """This rank's: tensors and numbers only. To be asked for between a step's end and the next batch."""
        return {
            "position": self._counter.position().state_dict(),
            "seed": self._sampler.seed,
            "images": len(self.dataset),
        }

    def load_state_dict(self, ranks: Sequence[dict[str, Any]]) -> Sequence[str]:
        """``ranks``: the states of all ranks, however many those were, in their order.

        Returns what stands against going on exactly there, in sentences. The seed of the states is taken over.
        """
        position = Position.of_all([Position.from_state(rank["position"]) for rank in ranks])
        self._sampler.start, self._sampler.seed = position, ranks[0]["seed"]
        problems = []
        if ranks[0]["images"] != len(self.dataset):
            problems.append(
                f"the training data had {ranks[0]['images']} images and has {len(self.dataset)}: it goes on after as "
                "many images, but these come in another order"
            )
        if not self._sampler.repeats_its_order:
            name = type(self._sampler.sampler).__name__
            problems.append(
                f"whether the sampler {name} repeats its order is up to it; {position.images} images are passed over"
            )
        return problems

    def pass_over(self, images: int) -> None:
        """Begin after so many images, of all ranks together."""
        self._sampler.start = Position(images)

    def _is_news(self) -> bool:
        """Is the first image left out, and is there no other rank to talk to? That need not wait."""
        return self._told == 0 and comm.get_world_size() == 1 and self.dataset.num_bad() > 0

    def report(self) -> None:
        """Bring log and list up to date. All ranks have to call it."""
        if comm.get_world_size() > 1:
            for images in comm.all_gather(self.dataset.bad_images()):
                self.dataset.add_bad_images(images)
        bad = self.dataset.num_bad()
        if bad > self._told and comm.is_main_process():
            self._told = bad
            logger.warning("%s; others take their place. %s", self._summary(), self._where())
        self._update_list()

    def _update_list(self) -> None:
        """Write what was told, as soon as there is a folder: the first batch is read before that is made."""
        is_listed = self._listed >= self._told + len(self.dataset.left_out)
        if not is_listed and comm.is_main_process() and self._csv is not None and self._csv.parent.is_dir():
            self._write_list()

    def summarise(self) -> None:
        """Log once more, at the end, how many images were left out. All ranks have to call it."""
        self._told = 0
        self.report()

    def _summary(self) -> str:
        bad = self.dataset.bad_images()
        causes = ", ".join(f"{number} {cause}" for cause, number in Counter(cause for _, cause in bad).items())
        return (
            f"{len(bad)} of {len(self.dataset)} training images cannot be read ({causes}; "
            f"max_bad={self.dataset.max_bad:g} allows {self.dataset.most_bad})"
        )

    def _where(self) -> str:
        if self._csv is not None:
            return f"They are listed in {self._csv}."
        bad = self.dataset.bad_images()
        names = ", ".join(str(self.dataset.record(index)["file_name"]) for index, _ in bad[:_LISTED])
        return f"They are {names}{', ...' if len(bad) > _LISTED else '.'}"

    def _too_many(self) -> DataError:
        self._write_list()
        return DataError(
            f"{self._summary()}. {self._where()} Repair them or remove them from the dataset (dinox check-data finds "
            f"all of them), or allow more of them to be left out: dataloader.train.max_bad, a share from 0 to 1."
        )

    def _write_list(self) -> None:
        if self._csv is None:
            return
        rows = [_row(self.dataset.record(index), cause) for index, cause in self.dataset.bad_images()]
        rows += [[str(field) for field in entry] for entry in self.dataset.left_out]
        known = set(map(tuple, rows))
        try:
            self._csv.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._csv) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(_COLUMNS)
                writer.writerows([*(row for row in self._earlier if tuple(row) not in known), *rows])
        except OSError as error:
            logger.warning("The list of skipped images %s cannot be written: %s", self._csv, error.strerror)
            self._csv = None
        self._listed = len(rows)


def _row(record: dict, cause: str) -> list[str]:
    return [str(record["file_name"]), str(record.get("image_id", "")), cause]


def _rows_of_resumed_run(file: Path | None) -> list[list[str]]:
    """What the list of a run says that is resumed. A folder without a checkpoint is none: another run begins there."""
    if file is None or not file.is_file() or not (file.parent / CHECKPOINT_MARK).is_file():
        return []
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        return [row for row in csv.reader(stream) if row and row != _COLUMNS]
