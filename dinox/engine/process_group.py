"""torch's process group for one of several processes, with detectron2's groups inside of it, and its peers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from dinox.config.values import shown
from dinox.engine.peers import Peers
from dinox.engine.places import Place
from dinox.utils.compat import forget_local_processes, set_cpu_group, set_local_processes, silence_typed_storage

DEFAULT_TIMEOUT = 600.0
MOST_TIMEOUT = 365 * 24 * 60 * 60


def timeout_of(cfg: DictConfig) -> float:
    """``train.timeout``: seconds that processes wait for each other. Raises ValueError for what is no such number."""
    value = OmegaConf.select(cfg, "train.timeout", default=None)
    if value is None:
        return DEFAULT_TIMEOUT
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MOST_TIMEOUT:
        raise ValueError(
            f"train.timeout: expected seconds, a number above 0 and at most {MOST_TIMEOUT} (a year), got {shown(value)}"
        )
    return float(value)


@contextmanager
def joined(place: Place, *, device_type: str, timeout: float) -> Iterator[Peers]:
    """Be one of several processes: nccl on GPUs, of which this process takes one, gloo on the CPU.

    When all is done, the processes wait for each other; on an error, none waits.

    Raises ConnectionError if the others are not found within ``timeout`` seconds.
    """
    if device_type == "cuda":
        torch.cuda.set_device(_own_gpu(place))
    silence_typed_storage()
    _initialise(place, "nccl" if device_type == "cuda" else "gloo", timeout)
    limit = timedelta(seconds=timeout)
    if device_type == "cuda":
        set_cpu_group(dist.new_group(backend="gloo", timeout=limit))  # detectron2's own would wait half an hour
    set_local_processes(_ranks_by_machine(place), timeout=limit)
    peers = Peers(
        address=place.address,
        port=place.port,
        rank=place.rank,
        world_size=place.world_size,
        job=place.job,
        timeout=timeout,
        keeps_store=place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
    )
    yield peers
    comm.synchronize()  # rank 0 may keep the store that the others watch
    peers.close()
    dist.destroy_process_group()
    forget_local_processes()


def _initialise(place: Place, backend: str, timeout: float) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.address, str(place.port)
    try:
        dist.init_process_group(
            backend,
            init_method="env://",
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout),
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        cure = (
            f"port {place.port} is taken: set MASTER_PORT to a free one, the same for all processes"
            if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower()
            else "see that all of them are started, and that the machines reach each other there"
        )
        raise ConnectionError(
            f"rank {place.rank}: the {place.world_size} processes have not found each other at {place.address}:"
            f"{place.port} within {timeout:g} s ({reason}); {cure}"
        ) from error


def _own_gpu(place: Place) -> int:
    found = torch.cuda.device_count()
    if found == 1 and (place.local_size or 0) > 1 and place.source == "SLURM":
        return 0  # srun may show each task its own GPU only
    if place.local_rank >= found:
        raise ValueError(
            f"rank {place.rank} is process {place.local_rank} (from 0) of its machine, on which torch finds {found} "
            "CUDA devices: start as many processes as there are GPUs, or add --num-gpus 0 to train on the CPU"
        )
    return place.local_rank


def _ranks_by_machine(place: Place) -> list[list[int]]:
    machines: dict[int, list[int]] = {}
    for rank, machine in enumerate(comm.all_gather(place.machine)):
        machines.setdefault(machine, []).append(rank)
    return list(machines.values())
