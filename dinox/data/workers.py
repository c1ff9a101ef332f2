"""The processes of a data loader: what they hand over, and what their end is called."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import get_worker_info

from dinox.data.errors import DataError
from dinox.utils.tensors import tensors_in

LOST_WORKER = "DataLoader worker"  # torch's words
_MEMORY_CURE = "lower {loader}.num_workers or enlarge /dev/shm"


def handed_over(image: dict) -> dict:
    """The same image, in a worker process with its tensors in the memory that it shares with the main one.

    There torch would put them later, in a thread whose errors reach nobody: the main process would wait for ever.
    Raises DataError if that memory is full.
    """
    if get_worker_info() is None:
        return image
    try:
        for _, tensor in tensors_in(image):
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        cure = _MEMORY_CURE.format(loader="dataloader.train (or dataloader.test)")
        raise DataError(
            f"{image.get('file_name', 'an image')}: no room in the memory that processes share, /dev/shm ({error}): "
            f"{cure} (docker run --shm-size=8g)"
        ) from error
    return image


def is_lost_worker(error: Exception) -> bool:
    """What torch raises where a worker was killed: a RuntimeError in the midst of anything, or what comes of asking the
    worker for a batch."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(LOST_WORKER)
    return not str(error).startswith("Caught ")  # of the worker itself, alive


def lost_worker(error: Exception, *, loader: str, consequence: str = "") -> DataError:
    """The error to raise instead. loader: the config's key, of "dataloader.train" or "dataloader.test"."""
    kind = loader.rpartition(".")[2].replace("train", "training")
    return DataError(
        f"a process that reads {kind} images was ended from outside ({str(error).strip()}). If memory ran out (the "
        f"system's log tells), {_MEMORY_CURE.format(loader=loader)}{consequence}"
    )


@contextmanager
def explained_losses_of_test_workers() -> Iterator[None]:
    """Around an evaluation. Raises DataError where a worker was killed."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        raise lost_worker(error, loader="dataloader.test") from error
