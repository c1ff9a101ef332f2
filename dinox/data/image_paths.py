"""Where the images of a dataset may lie: below its image folder.

A json says which files are read, and it may come from anywhere. So a ``file_name`` may not lead out of the image
folder, by "..", or as an absolute path, unless that is allowed. What counts is the path as it is written: symbolic
links are followed, because who may write the image folder decides where they lead.
"""

import os
from collections.abc import Iterable

ALLOW_KEY = "allow_outside_image_root"
"""The argument of ``load_dataset_dicts``, and so a config key, that allows it."""


def leaves_root(path: str, image_root: str | os.PathLike) -> bool:
    """Does a path, relative to ``image_root`` or absolute, lead out of it? A URL does. Touches no file."""
    if "://" in path or "\0" in path:  # detectron2 opens URLs too
        return True
    if not path.startswith("/") and ".." not in path:
        return False  # nearly all
    root = os.path.abspath(image_root)
    full = os.path.abspath(os.path.join(root, path))
    return not full.startswith(root.rstrip("/") + "/")


def first_outside(paths: Iterable[str], image_root: str | os.PathLike) -> int | None:
    """Position of the first path that leads out of the image folder. The paths begin with it, or are absolute."""
    prefix = os.path.join(os.fspath(image_root), "")
    for position, path in enumerate(paths):
        relative = path[len(prefix) :] if path.startswith(prefix) else path
        if leaves_root(relative, image_root):
            return position
    return None


def root_name(image_root: str | os.PathLike) -> str:
    """The folder in a message."""
    return os.fspath(image_root) or f"'' (the current folder, {os.getcwd()})"
