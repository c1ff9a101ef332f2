"""Files that are there whole or not at all, and that replace nothing unasked."""

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TEMPORARY = ".partial"
_NAME_PART = 50  # characters of a file's name in that of the temporary one, so that this is not too long


@dataclass(frozen=True)
class NamedFile:
    """A file that a command reads or writes. role: what it is there, such as ``--json``."""

    role: str
    path: str | os.PathLike

    def __str__(self) -> str:
        return f"{os.fspath(self.path)} ({self.role})"


def check_outputs(outputs: Iterable[NamedFile], *, inputs: Iterable[NamedFile] = (), overwrite: bool = False) -> None:
    """Check that writing ``outputs`` loses nothing.

    Paths are compared as the files they lead to, behind links and under other names.

    Raises ValueError: one of them is also an input, or another output, whatever ``overwrite`` says; or, without it, one
    is there already.
    """
    read = {place: file for file in inputs for place in _places(file.path)}
    written: dict[Any, NamedFile] = {}
    there = []
    for file in outputs:
        places = _places(file.path)
        for place in places:
            if place in read:
                raise ValueError(
                    f"{file} would overwrite what this command reads, {read[place]}: give another place to write to"
                )
            if place in written:
                raise ValueError(
                    f"{written[place].role} and {file.role} would both be written to {os.fspath(file.path)}: give them "
                    "different names"
                )
        written |= dict.fromkeys(places, file)
        if os.path.lexists(file.path):
            there.append(file)
    if there and not overwrite:
        more = f" (and {len(there) - 1} more of this run)" if len(there) > 1 else ""
        raise ValueError(f"{there[0]}{more} is there already: choose another place, or give --overwrite to replace it")


def _places(path: str | os.PathLike) -> list[Any]:
    """What two names of one file have in common; the second one, where there is a file, also if case does not count."""
    real = os.path.realpath(path)
    try:
        found = os.stat(real)
    except OSError:
        return [real]
    return [real, (found.st_dev, found.st_ino)]


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary file beside ``path`` to write into; when the block ends, it gets that name at once.

    Content and name are on the disk, and not only on their way to it, when this returns. A file that is replaced hands
    on its permissions; of a link, the file that it leads to is replaced. When the block fails, the temporary file is
    removed and what was at ``path`` stays. A process that is killed leaves it over, see ``remove_leftovers``.
    """
    path = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_NAME_PART]}.", suffix=_TEMPORARY)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.chmod(temporary, _mode(path))  # mkstemp's files are for their owner only
        os.replace(temporary, path)
        _flush_names_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike) -> list[Path]:
    """Temporary files of processes that were killed while they wrote ``path``, or what matches its pattern
    (``model_*.pth``). Nobody may be writing it."""
    path = Path(path)
    found = sorted(path.parent.glob(f".{path.name}.*{_TEMPORARY}"))
    for file in found:
        file.unlink(missing_ok=True)
    return found


def _mode(path: Path) -> int:
    """The permissions of the file that is there, else those of any new file."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def _flush_to_disk(path: Path) -> None:
    """A name must not survive a power failure that its content does not."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_names_to_disk(folder: Path) -> None:
    """Nor may what comes after it, such as the removal of an older file, survive one that the name does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # file systems that cannot do this order names by themselves, or not at all
    finally:
        os.close(descriptor)
