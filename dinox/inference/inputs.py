"""From what stands on the command line to files, and to the names of what is written for them."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"}
    | {".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""What is taken from folders and patterns. A file that is named itself is read whatever its name is."""

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})

_STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Input:
    """path: as it was given or found. relative: seen from the folder that all inputs have in common."""

    path: str
    relative: Path

    @property
    def is_video(self) -> bool:
        return self.relative.suffix.lower() in VIDEO_SUFFIXES

    @property
    def drawn_name(self) -> Path:
        """The file that it is drawn into: a JPEG or PNG as it is one, else a PNG; of a video an MP4."""
        kept = (".mp4",) if self.is_video else (".jpg", ".jpeg", ".png")
        if self.relative.suffix.lower() in kept:
            return self.relative
        return self.relative.with_name(self.relative.name + (".mp4" if self.is_video else ".png"))


def find_inputs(texts: Sequence[str], *, standard_input: Iterable[str] = ()) -> list[Input]:
    """The images and videos behind paths, folders (their own files, in the order of their names), patterns such as
    ``photos/**/*.jpg``, and ``-`` for paths in the lines of standard input. A file that is met twice counts once.

    A path that does not exist is kept: reading it will say so. Raises ValueError for a folder or a pattern without
    images, and if there is no input at all.
    """
    paths: list[str] = []
    for text in texts:
        if text == _STANDARD_INPUT:
            paths += [line for line in (line.rstrip("\r\n") for line in standard_input) if line.strip()]
        else:
            paths += _expand(text)
    if not paths:
        raise ValueError("no images: give files, folders, patterns in quotes, or - with paths on the standard input")
    unique = list({os.path.abspath(path): path for path in reversed(paths)}.values())[::-1]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in unique])
    return [Input(path, Path(os.path.relpath(os.path.abspath(path), root))) for path in unique]


def _expand(text: str) -> list[str]:
    if os.path.isdir(text):
        found = sorted(entry.path for entry in os.scandir(text) if _is_taken(entry.path))
        if not found:
            raise ValueError(
                f"{text}: no images or videos in this folder. For those in its subfolders give "
                f"'{os.path.join(text, '**', '*.jpg')}', in quotes"
            )
        return found
    if os.path.lexists(text) or not glob.has_magic(text):
        return [text]
    found = sorted(path for path in glob.iglob(os.path.expanduser(text), recursive=True) if _is_taken(path))
    if not found:
        raise ValueError(f"{text}: no image or video matches this pattern, seen from {os.getcwd()}")
    return found


def _is_taken(path: str) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    hidden = os.path.basename(path).startswith(".")
    return not hidden and suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES and os.path.isfile(path)
