"""The image files of a dataset: are they there, and do they fit the json?"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from dinox.data.coco_problems import is_size
from dinox.data.errors import DataError, UnreadableImage
from dinox.data.image_paths import leaves_root
from dinox.data.images import Conversion, ImageFile, inspect_image, read_image
from dinox.data.inspection.source import DatasetSource
from dinox.data.problems import Place, Problem

_WORTH_A_LISTING = 16
"""Files in one folder from which on reading the folder is faster than asking for each file."""

_CONVERSIONS = {
    Conversion.DEPTH: ("deep-image", "gray with more than 8 bits per pixel, which are scaled to 8"),
    Conversion.ALPHA: ("alpha-image", "with transparency, which is dropped"),
    Conversion.FRAMES: ("frames-image", "with several frames, of which the first is taken"),
}


@dataclass(frozen=True)
class OpenedImage:
    """One image of the json, and what its file's header says (None if it cannot be read: ``error`` says why).

    exif: what training does with the orientation, "apply" or "ignore".
    """

    image: dict
    path: str
    file: ImageFile | None
    error: DataError | None = None
    exif: str = "apply"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of what training reads."""
        return self.file.stored_size if self.exif == "ignore" else (self.file.width, self.file.height)

    @property
    def is_turned(self) -> bool:
        """Does EXIF turn it by 90 degrees, so that its size is another one?"""
        return self.file.stored_size != (self.file.width, self.file.height)

    @property
    def is_rotated(self) -> bool:
        """Does the json have the size of the image as it is stored, but training turns it, or the other way round?"""
        return self.is_turned and (self.image.get("width"), self.image.get("height")) == self.size[::-1]


def readable_entries(source: DatasetSource, *, allow_outside: bool) -> list[dict]:
    """The images of the json with a file name that may be touched."""
    return [
        image
        for image in source.coco["images"]
        if isinstance(image, dict)
        and isinstance(image.get("file_name"), str)
        and (allow_outside or source.image_root is None or not leaves_root(image["file_name"], source.image_root))
    ]


def find_missing(source: DatasetSource, images: Sequence[dict]) -> list[Problem]:
    """Images that are not there, or are folders. Reads each folder once; opens no file."""
    folders: dict[str, list[dict]] = defaultdict(list)
    for image in images:
        folders[os.path.dirname(source.path(image["file_name"]))].append(image)
    missing, not_files = [], []
    for folder, entries in folders.items():
        for image, state, hint in _states(folder, entries):
            path = source.path(image["file_name"])
            if state == "missing":
                missing.append(Place(image.get("id"), f"no file {path}{hint}", path))
            elif state == "folder":
                not_files.append(Place(image.get("id"), f"{path} is a folder", path))
    cure = "Add the files, or remove the images from the json."
    return [
        *_problem("missing-file", "left out", missing, cure),
        *_problem("folder-not-file", "error", not_files, "Correct the 'file_name'."),
    ]


def _states(folder: str, images: Sequence[dict]) -> Iterator[tuple[dict, str, str]]:
    """Of each image "file", "folder" or "missing", with a hint."""
    if len(images) < _WORTH_A_LISTING:
        names = {os.path.basename(image["file_name"]): None for image in images}
        names = {name: os.path.isdir(os.path.join(folder, name)) for name in names if _exists(folder, name)}
        spellings = {}
    else:
        try:
            with os.scandir(folder or ".") as entries:
                names = {entry.name: entry.is_dir() for entry in entries}
        except OSError:
            names = {}
        spellings = {name.lower(): name for name in names}
    for image in images:
        name = os.path.basename(image["file_name"])
        if name in names:
            yield image, "folder" if names[name] else "file", ""
        else:
            similar = spellings.get(name.lower())
            yield image, "missing", f", but there is {similar}" if similar else ""


def _exists(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name))


def open_images(
    source: DatasetSource,
    images: Sequence[dict],
    *,
    decode: bool = False,
    exif: str = "apply",
    max_pixels: int | None = None,
    workers: int = 8,
    progress: bool = False,
) -> list[OpenedImage]:
    """Read the header of every image, in threads; with ``decode`` the pixels too, which finds damage in the middle.

    ``exif``, ``max_pixels``: as in ``DetectionMapper``.
    """

    def open_one(image: dict) -> OpenedImage:
        path = source.path(image["file_name"])
        try:
            header = inspect_image(path, max_pixels=max_pixels)
            if decode:
                read_image(path, max_pixels=max_pixels)
        except DataError as error:
            return OpenedImage(image, path, None, error, exif)
        return OpenedImage(image, path, header, None, exif)

    return _in_threads(open_one, images, workers=workers, label="opening images" if progress else None)


def _in_threads(work: Callable, items: Sequence[Any], *, workers: int, label: str | None) -> list:
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(work, items)
        return list(tqdm(results, total=len(items), desc=label, unit="image", leave=False, disable=label is None))


def find_file_problems(opened: Iterable[OpenedImage]) -> list[Problem]:
    """What is wrong with the files, and where they do not fit the json. Missing files are left to ``find_missing``."""
    places: dict[str, list[Place]] = defaultdict(list)
    for each in opened:
        for kind, detail in _file_faults(each):
            places[kind].append(Place(each.image.get("id"), detail, each.path))
    fix = "dinox check-data --fix writes a json that fits."
    conversions = [
        problem
        for kind, _ in _CONVERSIONS.values()
        for problem in _problem(kind, "note", places[kind], "Nothing to do.")
    ]
    mirrored_cure = "Look at one with its boxes: dinox turns images as EXIF says (mapper.exif=ignore does not)."
    return [
        *_problem("unreadable-file", "left out", places["unreadable-file"], "Replace the files, or remove them."),
        *_problem("unusable-file", "error", places["unusable-file"], "Convert the files, or remove them."),
        *_problem("rotated-image", "error", places["rotated-image"], f"{fix} Or set mapper.exif=ignore."),
        *_problem("shown-size", "error", places["shown-size"], "Set mapper.exif=apply, if their boxes are of it too."),
        *_problem(
            "wrong-size", "error", places["wrong-size"], f"{fix} It leaves those whose boxes may be of another scale."
        ),
        *_problem("mirrored-image", "note", places["mirrored-image"], mirrored_cure),
        *conversions,
    ]


def _file_faults(opened: OpenedImage) -> Iterator[tuple[str, str]]:
    """(kind, detail) for one image."""
    if opened.file is None:
        cause = opened.error.cause if isinstance(opened.error, UnreadableImage) else ""
        if cause != "missing":
            yield "unreadable-file" if cause else "unusable-file", str(opened.error)
        return
    file, image = opened.file, opened.image
    size = (image.get("width"), image.get("height"))
    if all(map(is_size, size)) and size != opened.size:
        width, height = opened.size
        detail = f"the json says {size[0]} x {size[1]} (width x height), the file is {width} x {height}"
        if not opened.is_rotated:
            yield "wrong-size", detail
        elif opened.exif == "ignore":
            yield "shown-size", f"{detail} without its EXIF orientation {file.orientation} (mapper.exif=ignore)"
        else:
            yield "rotated-image", f"{detail} with its EXIF orientation {file.orientation} applied"
    if opened.exif == "apply" and file.orientation != 1 and not opened.is_turned:
        # Mirrored, upside down, or turned and square: the json's size does not tell what its boxes were made for.
        yield "mirrored-image", f"EXIF orientation {file.orientation}: boxes have to be of the image as it is shown"
    for conversion, (kind, text) in _CONVERSIONS.items():
        if conversion in file.conversions:
            yield kind, text


def _problem(kind: str, severity: str, places: list[Place], cure: str) -> list[Problem]:
    return [Problem(kind, severity, "image", places[0].detail, tuple(places), cure)] if places else []
