"""Several processes, with detectron2's launcher."""

from collections.abc import Callable

import torch
from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing import ProcessExitedException


def check_launch(*, num_gpus: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    """Raises ValueError for numbers that cannot be, and if there are fewer GPUs than asked for."""
    several = num_machines > 1
    if num_machines < 1:
        raise ValueError(f"--num-machines: expected at least 1, got {num_machines}")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"--machine-rank: expected 0 to {num_machines - 1} of {num_machines}, got {machine_rank}")
    if num_gpus < (1 if several else 0):
        raise ValueError(f"--num-gpus: expected at least {'1 on each machine' if several else 0}, got {num_gpus}")
    if several and dist_url == "auto":
        raise ValueError(
            f"--num-machines {num_machines}: give the same --dist-url tcp://HOST:PORT on all of them: HOST is the "
            "machine of rank 0, PORT a free port there"
        )
    found = torch.cuda.device_count()
    if num_gpus > found and num_gpus * num_machines > 1:
        raise ValueError(f"--num-gpus {num_gpus}: torch finds {found} CUDA devices on this machine")


def launch(
    function: Callable[..., int],
    *args: object,
    num_gpus: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> int:
    """Call ``function(*args)`` in one fresh process per GPU, and return its exit code.

    Arguments as in ``detectron2.engine.launch``, checked by ``check_launch``.
    """
    try:
        detectron2_launch(_exit_with, num_gpus, num_machines, machine_rank, dist_url, args=(function, *args))
    except ProcessExitedException as error:
        return error.exit_code
    return 0


def _exit_with(function: Callable[..., int], *args: object) -> None:
    code = function(*args)
    if code:
        raise SystemExit(code)
