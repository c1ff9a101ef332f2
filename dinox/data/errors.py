"""The one exception for data that cannot be used."""


class DataError(ValueError):
    """The message names the file, the field or the id, what was expected, what was found and what to do.

    Raised in a worker process of a DataLoader, it arrives in the main process with the worker's traceback as its
    message; that is cut off here, so that the last line a user sees is the message itself.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_without_worker_traceback(message))


def _without_worker_traceback(message: str) -> str:
    # torch.utils.data raises DataError("Caught DataError in DataLoader worker process 0.\nOriginal Traceback ...").
    marker = f"{DataError.__name__}: "
    if message.startswith(f"Caught {DataError.__name__} in ") and marker in message:
        return message.rsplit(marker, 1)[1].strip()
    return message
