"""The checkpoints in the output folder of a run: written whole or not at all, and verified before one is resumed.

A kill at any moment, also one of the whole machine, leaves a checkpoint that loads: a file gets its name only when its
content is on the disk, the tag ``last_checkpoint`` follows, and older files are removed after that.
"""

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dinox.checkpoint.reading import CheckpointError, read_checkpoint
from dinox.checkpoint.writing import writing_errors
from dinox.utils.whole_files import remove_leftovers, written_whole

logger = logging.getLogger(__name__)

TAG = "last_checkpoint"
"""detectron2's: the file that names the last checkpoint of its folder."""

BEST = "model_best"
"""The file with the weights that were best in evaluation, without ``.pth``: no run can be resumed from it."""

LAST_EVALUATION = "last_evaluation"
"""The results of the last evaluation, as json: it comes after the checkpoint of its iteration, which lacks them."""

RUN_STATE = "RunCheckpoints"
"""The hook of ``dinox.engine`` whose state is that of the run, under "hooks" of the trainer's."""


def save(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint. Raises CheckpointError if the disk is full or breaks; what was there is kept."""
    with writing_errors(path), written_whole(path) as temporary, open(temporary, "wb") as file:
        # Not by its name: errors of torch's own files do not say what the disk said.
        torch.save(dict(content), file)


def tag(folder: str | os.PathLike, name: str) -> None:
    """Name the last checkpoint. Raises CheckpointError as ``save``."""
    path = Path(folder) / TAG
    with writing_errors(path), written_whole(path) as temporary:
        temporary.write_text(name)


def check_not_the_best_alone(
    folder: str | os.PathLike, *, setting: str = "train.output_dir", start: str = "train.init_checkpoint"
) -> None:
    """Of a folder without a checkpoint to resume. Raises CheckpointError if a run there would replace ``BEST``.

    ``setting``, ``start``: what messages call the folder, and the weights that training starts from.
    """
    best = Path(folder) / f"{BEST}.pth"
    if best.exists():
        raise CheckpointError(
            f"{setting}={folder} holds {best.name} only, which no run can be resumed from and a new one would replace: "
            f"start from it with {start}={best} in another {setting}, or move it"
        )


def verify(path: str | os.PathLike) -> None:
    """Read a file of ``save`` wholly and compare it with its checksums. Raises CheckpointError.

    torch.load notices that a file was cut off, but not that its tensors were changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: not a whole file ({error})") from error
    if broken is not None:
        raise CheckpointError(f"{path}: damaged (checksum of {broken})")


def last_whole(folder: str | os.PathLike) -> Path | None:
    """The checkpoint to resume: the tagged one, or if that is not whole, the newest that is; a warning says so.

    None: the folder has none. Raises CheckpointError if it has some, and none of them is whole; or if the tag leads out
    of the folder.
    """
    folder = Path(folder)
    tagged = tagged_file(folder)
    problems = []
    if tagged is None and (folder / TAG).exists():
        problems.append(f"{folder / TAG}: empty")
    candidates = [] if tagged is None else [tagged]
    candidates += [path for path in newest_first(folder) if path != tagged]
    for path in candidates:
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning("Going back to the newest checkpoint that is whole, %s (%s)", path, "; ".join(problems))
        elif tagged is None:
            logger.warning("%s is missing: taking the newest checkpoint, %s", folder / TAG, path)
        return path
    if problems:
        raise CheckpointError(
            f"{folder}: no checkpoint in it is whole ({'; '.join(problems)}). Copy one from elsewhere, or start anew "
            "in another folder"
        )
    return None


def tagged_file(folder: Path) -> Path | None:
    """None: there is no tag, or it is empty, as a kill in detectron2's own code may leave it."""
    try:
        name = (folder / TAG).read_text(errors="replace").strip("\0 \t\r\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{folder / TAG}: {error.strerror or error}") from error
    if name and (name in (".", "..") or os.path.basename(name) != name):
        raise CheckpointError(
            f"{folder / TAG}: expected the name of a file in {folder}, got {name!r}. Write a checkpoint's name there"
        )
    return folder / name if name else None


def newest_first(folder: Path) -> list[Path]:
    """The files of this folder that a run can be resumed from, by the images that they were trained on."""
    found = []
    for path in folder.glob("*.pth"):
        images = _images(path)
        if images is not None:
            found.append((images, path.stat().st_mtime_ns, path))
    return [path for *_, path in sorted(found, reverse=True)]


def _images(path: Path) -> int | None:
    """Iterations where the batch is not told. None: a file that is none of a run, or so broken that it does not say."""
    try:
        content = read_checkpoint(str(path), trusted=True, mapped=True)
    except CheckpointError:
        return None
    iteration, trainer = content.get("iteration"), content.get("trainer")
    if not isinstance(iteration, int) or not isinstance(trainer, Mapping):
        return None
    # A run that was resumed with larger batches counts fewer iterations than before.
    batch = trainer.get("hooks", {}).get(RUN_STATE, {}).get("total_batch_size")
    return (iteration + 1) * (batch or 1)


def remove_leftovers_of_killed(folder: str | os.PathLike) -> None:
    """Temporary files of a run that was killed while it wrote. No other run may use the folder."""
    for pattern in ("*.pth", TAG, LAST_EVALUATION):
        for file in remove_leftovers(Path(folder) / pattern):
            logger.info("Removed %s, left over from a run that was killed", file)
