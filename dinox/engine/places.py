"""Which of several processes this one is: as torchrun says, or SLURM's srun, in the variables of the environment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dinox.utils.node_lists import expand_nodes, expand_task_counts

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for its processes; anything else that starts them may do the same."""

SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_JOB_ID")

_FIRST_PORT, _PORTS = 10000, 20000  # below those that systems hand out to outgoing connections (32768 on Linux)
_STEPS_PER_JOB = 31  # so that steps of one job, and jobs next to each other, have other ports


@dataclass(frozen=True)
class Place:
    """One of several processes.

    rank: 0 to world_size - 1. local_rank: the same among those on its machine, of which there are local_size (None:
    not told). machine: a number that those on one machine share. address, port: where the first process, or what
    started it, is to be found. job: a text that tells this start from others. source: who said so.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int | None
    machine: int
    address: str
    port: int
    job: str
    source: Literal["torchrun", "SLURM"]


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's, or None if it was not started as one of several. Raises ValueError for variables that cannot be.

    SLURM's variables count in the tasks of ``srun`` alone: a shell or a batch script on an allocation has many of them
    too, but is no task of several.
    """
    if int(_number("WORLD_SIZE", environment, least=1) if "WORLD_SIZE" in environment else 1) > 1:
        missing = [name for name in TORCHRUN if name not in environment]
        if not missing:
            return _of_torchrun(environment)
        if "RANK" in environment:
            raise ValueError(
                f"WORLD_SIZE and RANK are set, but not {', '.join(missing)}: expected all of {', '.join(TORCHRUN)}, as "
                "torchrun sets them. Start with torchrun, or unset WORLD_SIZE and RANK to train in one process"
            )
    if "TORCHELASTIC_RUN_ID" not in environment and all(name in environment for name in SLURM):
        return _of_slurm(environment)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    world_size = _number("WORLD_SIZE", environment, least=1)
    local_size = None
    if "LOCAL_WORLD_SIZE" in environment:
        local_size = _number("LOCAL_WORLD_SIZE", environment, least=1)
    rank = _number("RANK", environment, below=world_size)
    if "GROUP_RANK" in environment:
        machine = _number("GROUP_RANK", environment)
    else:
        machine = rank // (local_size or world_size)
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=_number("LOCAL_RANK", environment, below=local_size),
        local_size=local_size,
        machine=machine,
        address=environment["MASTER_ADDR"],
        port=_number("MASTER_PORT", environment, least=1, below=65536),
        # torchrun starts its processes anew with the same store if it is told to restart them.
        job=f"{environment.get('TORCHELASTIC_RUN_ID', '')}.{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        source="torchrun",
    )


def _of_slurm(environment: Mapping[str, str]) -> Place | None:
    # A step's own numbers come first: it may be smaller than the allocation.
    tasks = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in environment), None)
    if tasks is None or _number(tasks, environment, least=1) == 1:
        return None
    world_size = _number(tasks, environment, least=1)
    machine = _number("SLURM_NODEID", environment) if "SLURM_NODEID" in environment else 0
    counts = _list_of(("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"), environment, expand_task_counts)
    local_size = counts[machine] if counts is not None and machine < len(counts) else None
    job = _number("SLURM_JOB_ID", environment), _number("SLURM_STEP_ID", environment)
    return Place(
        rank=_number("SLURM_PROCID", environment, below=world_size),
        world_size=world_size,
        local_rank=_number("SLURM_LOCALID", environment, below=local_size),
        local_size=local_size,
        machine=machine,
        address=_address(environment),
        port=_port(*job, environment),
        job=f"{job[0]}.{job[1]}",
        source="SLURM",
    )


def _address(environment: Mapping[str, str]) -> str:
    """The step's first node has rank 0."""
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    nodes = _list_of(("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"), environment, expand_nodes)
    if nodes is None:
        raise ValueError("SLURM_JOB_NODELIST is not set: set MASTER_ADDR to the node of the first task")
    return nodes[0]


def _port(job: int, step: int, environment: Mapping[str, str]) -> int:
    """All tasks have to come to the same without asking each other."""
    if environment.get("MASTER_PORT"):
        return _number("MASTER_PORT", environment, least=1, below=65536)
    return _FIRST_PORT + (job * _STEPS_PER_JOB + step) % _PORTS


def _list_of(names: Sequence[str], environment: Mapping[str, str], expand) -> list | None:
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return None
    try:
        return expand(environment[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _number(name: str, environment: Mapping[str, str], *, least: int = 0, below: int | None = None) -> int:
    text = environment[name]
    value = int(text) if text.strip().isdecimal() else None
    if value is None or value < least or (below is not None and value >= below):
        limits = f"of at least {least}" if below is None else f"from {least} to {below - 1}"
        raise ValueError(f"{name}: expected a whole number {limits}, got {text!r}")
    return value


def check_no_contradiction(place: Place, *, num_gpus: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    """detectron2's options beside a place. Raises ValueError naming the one to leave out.

    What is left at its default, and ``num_gpus`` of 0 (the CPU) or the number of processes here, is no contradiction.
    """
    given = {
        f"--num-gpus {num_gpus}": num_gpus not in (0, 1, place.local_size),
        f"--num-machines {num_machines}": num_machines != 1,
        f"--machine-rank {machine_rank}": machine_rank != 0,
        f"--dist-url {dist_url}": dist_url != "auto",
    }
    options = [option for option, contradicts in given.items() if contradicts]
    if options:
        here = "" if place.local_size is None else f", {place.local_size} of them on this machine"
        raise ValueError(
            f"{', '.join(options)}: {place.source} has started {place.world_size} processes{here}, and says where they "
            f"are: leave out {' and '.join(option.split()[0] for option in options)}"
        )
