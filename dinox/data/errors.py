"""The exceptions for data that cannot be used."""


class DataError(ValueError):
    """The message names the file, the field or the id, what was expected, what was found and what to do.

    Raised in a worker process of a DataLoader, it arrives in the main process with the worker's traceback as its
    message; that is cut off here, so that the last line a user sees is the message itself.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_without_worker_traceback(message, type(self).__name__))


class UnreadableImage(DataError):
    """An image file that is missing or damaged. Training takes another image instead (see ``dinox.data.skipping``).

    ``cause``: one of ``dinox.data.images.CAUSES``.
    """

    def __init__(self, message: str, *, cause: str = "damaged") -> None:
        super().__init__(message)
        self.cause = cause


def _without_worker_traceback(message: str, name: str) -> str:
    # torch.utils.data raises DataError("Caught DataError in DataLoader worker process 0.\nOriginal Traceback ...").
    marker = f"{name}: "
    if message.startswith(f"Caught {name} in ") and marker in message:
        return message.rsplit(marker, 1)[1].strip()
    return message
