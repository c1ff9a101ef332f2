"""The catalogue of faults: forty things that go wrong in training and use, each with tests of what dinox then does.

A test belongs to the rows that its name or the id of its parameters names: ``test_row_07_...``, ``test_row_18_19_...``,
``test_row_01_to_03_...``, ``pytest.param(..., id="row_05")``. Most are in this folder; those of other folders are run
with them. ``pytest tests/faults`` runs all rows, prints a table of them, and fails if a row has no test.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROWS = {
    1: "truncated image",
    2: "empty file or web page as image",
    3: "missing image",
    4: "folder as image, no permission",
    5: "16-bit gray image",
    6: "image of floats",
    7: "gray, alpha, CMYK, palette, animation",
    8: "EXIF orientation",
    9: "wrong or missing height and width",
    10: "decompression bomb, 20k x 20k image",
    11: "1 x 1 and 3 x 4000 images",
    12: "truncated json",
    13: "json without categories or images",
    14: "unknown category ids",
    15: "gaps and orders of category ids",
    16: "repeated ids",
    17: "annotations of absent images",
    18: "negative width or height",
    19: "boxes without area, NaN, outside",
    20: "boxes that are none",
    21: "classes that are none",
    22: "another number of classes",
    23: "crowds",
    24: "images, batches, ranks without objects",
    25: "more objects than queries",
    26: "NaN or infinity in losses and costs",
    27: "fp16 overflow",
    28: "mistakes in configs",
    29: "malicious yaml, pickles, checkpoints",
    30: "broken or unfit checkpoint",
    31: "downloads that fail",
    32: "kill while saving",
    33: "disk full, read-only folder",
    34: "empty, stale, traversing tag",
    35: "stop and resume",
    36: "resume with other settings",
    37: "a rank dies, raises, stalls",
    38: "worker killed, full /dev/shm, signals",
    39: "no detections, unknown class, shared folder",
    40: "misuse of the predictor and the model",
}

PASSED, FAILED, SKIPPED, MISSING = "passed", "FAILED", "skipped", "MISSING"

_NUMBERS = re.compile(r"(?:^|-)row((?:_\d\d(?!\d))+)(?:_to_(\d\d)(?!\d))?")
_TEST = re.compile(r"^ *def test_row_\d\d", re.MULTILINE)


def rows_of(name: str) -> set[int]:
    """The rows of a test by its name, which has its parameters' ids in brackets: what these name, else the function."""
    function, _, parameters = name.partition("[")
    for text in (parameters, function.removeprefix("test_")):
        match = _NUMBERS.search(text)
        if match:
            numbers = [int(number) for number in match[1].split("_") if number]
            return {*numbers, *range(numbers[-1], int(match[2] or numbers[-1]) + 1)}
    return set()


def files_elsewhere(tests: Path, folder: Path) -> list[Path]:
    """Files of tests outside of ``folder`` that have tests of rows."""
    files = sorted(tests.rglob("test_*.py"))
    return [file for file in files if folder not in file.parents and _TEST.search(file.read_text(encoding="utf-8"))]


@dataclass
class Row:
    """What the tests of a row came to."""

    outcomes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def state(self) -> str:
        if not self.outcomes:
            return MISSING
        return next(each for each in (FAILED, PASSED, SKIPPED) if each in self.outcomes)


class Catalogue:
    """The pytest plugin.

    rows: number -> words. folder: where tests count though they are of no row. is_whole: all rows shall have a test;
    else the table is of those that have one.
    """

    def __init__(self, rows: dict[int, str], *, folder: Path, is_whole: bool):
        self.names, self.folder, self.is_whole = rows, folder, is_whole
        self.rows = {number: Row() for number in rows}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self.is_whole:
            others = [item for item in items if self.folder not in item.path.parents and not rows_of(item.name)]
            if others:
                config.hook.pytest_deselected(items=others)
                items[:] = [item for item in items if item not in set(others)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of setup, call and teardown."""
        for number in rows_of(report.nodeid.rpartition("::")[2]) & set(self.rows):
            row = self.rows[number]
            row.seconds += report.duration
            if report.failed:
                row.outcomes.append(FAILED)
            elif report.skipped:
                row.outcomes.append(SKIPPED)
            elif report.when == "call":
                row.outcomes.append(PASSED)

    @property
    def is_complete(self) -> bool:
        return all(row.state == PASSED for row in self.rows.values())

    def table(self) -> Iterable[str]:
        shown = {number: row for number, row in self.rows.items() if self.is_whole or row.outcomes}
        width = max((len(self.names[number]) for number in shown), default=0)
        yield f"{'row':>3}  {'fault':<{width}}  {'':<7}  tests  seconds"
        for number, row in shown.items():
            count = f"{len(row.outcomes):5d}  {row.seconds:7.1f}"
            yield f"{number:3d}  {self.names[number]:<{width}}  {row.state:<7}  {count}"
        if self.is_whole:
            passed = sum(row.state == PASSED for row in self.rows.values())
            yield f"fault catalogue: {passed} of {len(self.rows)}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if any(row.outcomes for row in self.rows.values()):
            terminalreporter.section("fault catalogue")
            for line in self.table():
                terminalreporter.line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.is_whole and not self.is_complete and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def asks_for_all(config: pytest.Config, folder: Path) -> bool:
    """Is pytest to run all of ``folder`` and nothing else?"""
    chosen = [config.getoption(name, None) for name in ("keyword", "markexpr", "lf", "deselect", "collectonly")]
    arguments = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    return not any(chosen) and arguments == [folder]


def register(config: pytest.Config, folder: Path, tests: Path, rows: dict[int, str] = ROWS) -> None:
    """To be called in ``pytest_configure`` of the folder's conftest.py."""
    is_whole = asks_for_all(config, folder)
    if is_whole:
        config.args += [str(file) for file in files_elsewhere(tests, folder)]
    config.pluginmanager.register(Catalogue(rows, folder=folder, is_whole=is_whole), "fault catalogue")
