"""Several processes on this machine, one per GPU, by what torchrun is made of."""

import logging
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dinox.engine.stopping import EXIT_CODES, set_handlers

_DIST_URL = re.compile(r"tcp://(?P<host>[^/]+):(?P<port>\d+)")
_HERE = "localhost:0"  # and any free port
_KILLED = 128  # plus the signal's number is a shell's exit code
_AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Those that torch's agent handles."""

_NOISY = ("torch.distributed.elastic", "torch.distributed.launcher")


class ProcessFailed(RuntimeError):
    """One of the processes failed. ``code``: to exit with; the text says which process, and why."""

    def __init__(self, message: str, *, code: int):
        super().__init__(message)
        self.code = code


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
    if dist_url != "auto" and _DIST_URL.fullmatch(dist_url) is None:
        raise ValueError(f"--dist-url: expected tcp://HOST:PORT or auto, got {dist_url!r}")
    found = torch.cuda.device_count()
    if num_gpus > found and num_gpus * num_machines > 1:
        cure = "" if found else f"; on the CPU, torchrun starts several: torchrun --nproc_per_node {num_gpus} ..."
        raise ValueError(f"--num-gpus {num_gpus}: torch finds {found} CUDA devices on this machine{cure}")


def launch(
    function: Callable[..., int],
    *args: object,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    timeout: float = 600.0,
    start_method: Literal["spawn", "fork"] = "spawn",
) -> int:
    """Call ``function(*args)`` in so many processes on this machine, and return their exit code, 0 if all is well.

    Each finds its place in its environment (``find_place``). When one fails, the others are asked to end by SIGTERM and
    killed 30 seconds later. Signals are passed on to them.

    Args:
        num_machines, machine_rank, dist_url: as in ``detectron2.engine.launch``.
        timeout: seconds to wait for the other machines.
        start_method: fresh processes, or copies of this one, which must not have used a GPU.

    Raises ProcessFailed with what went wrong first.
    """
    match = _DIST_URL.fullmatch(dist_url)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is said below
    with tempfile.TemporaryDirectory(prefix="dinox_") as folder:
        config = LaunchConfig(
            min_nodes=num_machines,
            max_nodes=num_machines,
            nproc_per_node=num_processes,
            run_id="dinox",
            rdzv_backend="c10d" if match is None else "static",
            rdzv_endpoint=_HERE if match is None else f"{match['host']}:{match['port']}",
            rdzv_configs={"timeout": int(timeout)} | ({} if match is None else {"rank": machine_rank}),
            max_restarts=0,
            start_method=start_method,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            with _own_signal_handlers():
                elastic_launch(config, _exit_with)(function, *args)
        except SignalException as stopped:
            return _KILLED + stopped.sigval
        except ChildFailedError as error:
            return _failed(*error.get_first_failure())
    return 0


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Torch's agent leaves its handlers behind, which would answer Ctrl-C in whatever this process does next."""
    before = {number: signal.getsignal(number) for number in _AGENT_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            set_handlers(before)


def _exit_with(function: Callable[..., int], *args: object) -> None:
    for number in _AGENT_SIGNALS:  # a copy has the handlers of what started it
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = function(*args)
    if code:
        raise SystemExit(code)


def _failed(rank: int, failure: ProcessFailure) -> int:
    code = failure.exitcode if failure.exitcode > 0 else _KILLED - failure.exitcode
    if code in EXIT_CODES:  # all of them stopped together, as they were asked to
        return code
    if isinstance(failure.message, dict):  # from Peers: the first failure, whichever process tells it
        raise ProcessFailed(failure.message["message"], code=failure.message.get("errorCode", code))
    if failure.exitcode < 0:
        raise ProcessFailed(f"rank {rank}: killed by {failure.signal_name()}", code=code)
    raise ProcessFailed(f"rank {rank}: ended with exit code {code}; what it printed above says why", code=code)
