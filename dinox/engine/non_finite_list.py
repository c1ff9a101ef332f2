"""The steps of a run that were left out because of values that are not finite: their number, and a list in a file."""

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from dinox.utils.whole_files import written_whole

logger = logging.getLogger(__name__)

LIST_FILE = "non_finite_steps.csv"
_COLUMNS = ["iteration", "rank", "terms", "images", "cause"]


class SkippedSteps:
    """
    Args:
        folder: of ``non_finite_steps.csv``, which the first rank writes. None: no list.
    """

    def __init__(self, folder: Path | None):
        self.count = 0
        self._file = None if folder is None else folder / LIST_FILE
        self._rows: list[list[str]] = []

    def add(self, iteration: int, reports: Mapping[int, Any]) -> None:
        """``reports``: by rank, see ``dinox.engine.non_finite.RankReport``."""
        self.count += 1
        for rank, report in reports.items():
            terms = " ".join(f"{name}={value}" for name, value in report.terms.items())
            self._rows.append([str(iteration), str(rank), terms, report.images, report.first or ""])
        if comm.is_main_process():
            self._write()

    def resume(self, count: int, iteration: int) -> None:
        """Go on after ``iteration``; what the file says of later ones will be done again."""
        self.count = count
        if self._file is None or not self._file.is_file():
            return
        with open(self._file, encoding="utf-8", errors="replace", newline="") as stream:
            rows = [row for row in csv.reader(stream) if len(row) == len(_COLUMNS) and row[0].isdecimal()]
        self._rows = [row for row in rows if int(row[0]) <= iteration]

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(_COLUMNS)
                writer.writerows(self._rows)
        except OSError as error:
            logger.warning("The list of skipped steps %s cannot be written: %s", self._file, error.strerror)
            self._file = None
