"""One process or several, with detectron2's launcher."""

from collections.abc import Callable

import torch
from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing import ProcessExitedException


def launch(
    function: Callable[..., int],
    *args: object,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> int:
    """Call ``function(*args)`` here, or in one process per GPU, and return its exit code.

    Arguments as in ``detectron2.engine.launch``. A process of several ends itself with ``sys.exit(code)``.

    Raises ValueError if there are fewer GPUs than asked for.
    """
    if num_gpus * num_machines <= 1:
        return function(*args)
    found = torch.cuda.device_count()
    if num_gpus > found:
        raise ValueError(f"--num-gpus {num_gpus}: torch finds {found} CUDA devices on this machine")
    try:
        detectron2_launch(_exit_with, num_gpus, num_machines, machine_rank, dist_url, args=(function, *args))
    except ProcessExitedException as error:
        return error.exit_code
    return 0


def _exit_with(function: Callable[..., int], *args: object) -> None:
    code = function(*args)
    if code:
        raise SystemExit(code)
