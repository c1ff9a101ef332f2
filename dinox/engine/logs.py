"""Where the messages of a run go: to the terminal at once, to a file as soon as the output folder exists."""

import logging
import logging.handlers
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal

from detectron2.utils import comm

from dinox.utils.progress import PROGRESS, evaluation_progress

LOGGERS = ("dinox", "detectron2", "fvcore")
Console = Literal["full", "progress", "off"]

_BUFFERED_RECORDS = 100_000


class RunLog:
    """Context manager around one run; leaves logging as it found it.

    The output folder of a run is created only after its settings proved right. Until ``open_file`` is called,
    messages for the file are kept in memory; a run that fails before leaves no file.

    ``console``: "full" (all messages), "progress" (progress lines without decoration, our warnings), "off" (nothing).
    Only the first rank writes to the terminal. A log inside of another one leaves everything to the outer one.
    """

    _outermost: ClassVar["RunLog | None"] = None

    def __init__(self, *, console: Console = "full"):
        self.console = console
        self._memory = logging.handlers.MemoryHandler(_BUFFERED_RECORDS, flushLevel=sys.maxsize, flushOnClose=False)
        self._file: logging.FileHandler | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "RunLog":
        if RunLog._outermost is None:
            RunLog._outermost = self
            self._stack.callback(setattr, RunLog, "_outermost", None)
            self._stack.callback(self._memory.close)
            handlers: list[logging.Handler] = [self._memory]
            if self.console != "off" and comm.is_main_process():
                handlers.append(_console_handler(self.console))
            for name in LOGGERS:
                self._attach(logging.getLogger(name), handlers)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None and RunLog._outermost is self:
            logging.getLogger("dinox").debug("The run ends with an error", exc_info=error)
        self._stack.close()

    def open_file(self, folder: str | Path) -> None:
        """Write everything since the run began to ``log.txt`` (``log.txt.rank1``, ...) in an existing folder."""
        if RunLog._outermost is not self:
            RunLog._outermost.open_file(folder)
        elif self._file is None:
            rank = comm.get_rank()
            self._file = logging.FileHandler(
                Path(folder) / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"), encoding="utf-8"
            )
            self._file.setFormatter(
                logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
            )
            self._stack.callback(self._file.close)
            self._memory.setTarget(self._file)
            self._memory.flush()
            # From now on without delay.
            self._memory.flushLevel = logging.NOTSET

    def _attach(self, logger: logging.Logger, handlers: list[logging.Handler]) -> None:
        # Someone who called detectron2's setup_logger has a console already.
        has_console = any(type(handler) is logging.StreamHandler for handler in logger.handlers)
        for handler in handlers:
            if not (has_console and isinstance(handler, _Console)):
                logger.addHandler(handler)
                self._stack.callback(logger.removeHandler, handler)
        self._stack.callback(setattr, logger, "propagate", logger.propagate)
        self._stack.callback(logger.setLevel, logger.level)
        logger.propagate = False
        logger.setLevel(logging.DEBUG)


class _Console(logging.StreamHandler):
    def __init__(self, formatter: logging.Formatter):
        super().__init__(sys.stdout)
        self.setLevel(logging.INFO)
        self.setFormatter(formatter)
        # The traceback of an error is for the file; on the terminal, the error itself is the last word.
        self.addFilter(lambda record: not record.exc_info)


def _console_handler(console: Console) -> logging.Handler:
    if console == "full":
        handler = _Console(_ConsoleFormatter("[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S"))
        handler.addFilter(lambda record: record.name != evaluation_progress.name)
    else:
        handler = _Console(_ConsoleFormatter("%(message)s"))
        handler.addFilter(lambda record: record.name.startswith(PROGRESS) or _is_our_warning(record))
    return handler


def _is_our_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and record.name.partition(".")[0] == "dinox"


class _ConsoleFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message.strip()}"
        return super().formatMessage(record)
