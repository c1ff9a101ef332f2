"""What has to be settled before a run: device, random seeds, output folder."""

import errno
import fcntl
import importlib.metadata
import logging
import os
import platform
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.checkpoint.run_files import remove_leftovers_of_killed
from dinox.engine.determinism import check_deterministic, deterministic_seed
from dinox.engine.logs import RunLog
from dinox.engine.lr_scaling import LRScaling
from dinox.engine.micro_batches import check_accumulation
from dinox.engine.model_settings import check_model_settings
from dinox.engine.non_finite import check_non_finite
from dinox.engine.options import check_options
from dinox.engine.settings import check_optimizer_numbers, check_train_keys

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""In the output folder; locked while a process trains into it, and telling which. It stays there, unlocked."""


def check_settings(cfg: DictConfig) -> None:
    """Check the training loop's settings where the config has them. Raises ValueError naming key and value."""
    check_train_keys(cfg)
    check_optimizer_numbers(cfg)
    check_non_finite(OmegaConf.select(cfg, "train.non_finite"))
    check_deterministic(cfg.train.get("deterministic"))
    check_model_settings(cfg.train)
    batch, processes = OmegaConf.select(cfg, "dataloader.train.total_batch_size"), comm.get_world_size()
    if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
        raise ValueError(f"dataloader.train.total_batch_size: expected a whole number of at least 1, got {batch!r}")
    if batch is not None and batch % processes:
        raise ValueError(
            f"dataloader.train.total_batch_size={batch} cannot be shared by {processes} processes: give a multiple of "
            f"{processes}"
        )
    if batch is not None:
        check_accumulation(cfg.train.get("accumulation_steps") or 1, batch // processes)
    LRScaling.of(cfg)
    check_options(cfg)


def resolve_device(configured: str, *, requested: str | None = None, setting: str = "train.device") -> torch.device:
    """The device to run on.

    Args:
        configured: the config's. If it is a GPU and there is none, the CPU takes its place, and a log line says so.
        requested: what the user asked for in so many words. If there is none, that is a ValueError.
        setting: what messages call the setting.
    """
    name = configured if requested is None else requested
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{setting}: expected 'cpu' or 'cuda', got {name!r}") from error
    if device.type != "cuda" or torch.cuda.is_available():
        return device
    if requested is not None:
        raise ValueError(
            f"{setting}={requested}: torch {torch.__version__} finds no CUDA device here. Leave the setting out or "
            f"give {setting}=cpu; if there is a GPU, check the driver with nvidia-smi"
        )
    logger.warning("No CUDA device found: running on the CPU (%s=cpu silences this line)", setting)
    return torch.device("cpu")


def seed_everything(seed: int, *, deterministic: bool = False) -> int:
    """Seed Python, numpy and torch, differently on each rank. Returns the seed.

    Negative: another one in each run, the same on all ranks, which is logged; ``deterministic``: always the same.
    """
    if deterministic:
        seed = deterministic_seed(seed)
    if seed < 0:
        seed = comm.all_gather(secrets.randbelow(2**31))[0]
        logger.info("No train.seed: the seed of this run is %d", seed)
    seed_all_rng(seed + comm.get_rank())
    return seed


@contextmanager
def opened_output_folder(folder: str | os.PathLike, *, cfg: DictConfig, log: RunLog) -> Iterator[Path]:
    """Create the folder of a run with ``config.yaml`` and ``log.txt``, and keep other runs out of it in the meantime.

    To be entered by all ranks when all checks have passed. Raises ValueError if another process trains into the folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"train.output_dir cannot be created: {error.strerror}", str(folder)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"train.output_dir={folder} cannot be written: choose another folder")
    with locked_output_folder(folder):
        log.open_file(folder)
        if comm.is_main_process():
            logger.debug("Environment: %s", _environment())
            LazyConfig.save(cfg, str(folder / "config.yaml"))
        yield folder


@contextmanager
def locked_output_folder(folder: str | os.PathLike, *, setting: str = "train.output_dir") -> Iterator[None]:
    """Keep other runs out of a folder that exists. To be entered by all ranks.

    Raises ValueError if another process trains into it. ``setting``: what messages call the folder.
    """
    lock = _lock(Path(folder), setting) if comm.is_main_process() else None
    try:
        if lock is not None:
            remove_leftovers_of_killed(folder)
        comm.synchronize()  # the other ranks write nothing either before the folder is theirs
        yield
    finally:
        if lock is not None:
            os.close(lock)


def check_space(
    folder: str | os.PathLike, model: nn.Module, *, copies: int = 0, setting: str = "train.output_dir"
) -> None:
    """Raises ValueError if there is not enough for one checkpoint: weights and, as in Adam, two averages of each.

    copies: of the weights, that are written beside (see ``copies_of_weights``).
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed = (1 + copies) * weights + 2 * sum(each.nbytes for each in model.parameters() if each.requires_grad)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{setting}={folder}: {free / 1e9:.1f} GB are free, and a checkpoint"
            f"{' with the weights written beside it' if copies else ''} takes about {needed / 1e9:.1f} GB. "
            f"Make room, or give another {setting}"
        )


def check_output_folder_is_free(folder: str | os.PathLike, *, setting: str = "train.output_dir") -> None:
    """Raises ValueError if another process trains into the folder now. Writes nothing."""
    if (Path(folder) / LOCK_FILE).exists() and comm.is_main_process():
        os.close(_lock(Path(folder), setting, sign=False))


def _lock(folder: Path, setting: str, *, sign: bool = True) -> int:
    """Lock the folder, as one process at a time can, until the returned descriptor is closed or the process ends.

    ``sign``: write into the lock file who has it. Raises ValueError naming who has it.
    """
    # A lock by fcntl, unlike one by flock, is not shared by the worker processes of data loaders, which outlive a
    # killed process by some seconds.
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            owner = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(
                f"{setting}={folder} is in use: {owner} is training into it. Wait for it or stop it, or give another "
                f"{setting}"
            ) from error
        logger.warning("%s cannot be locked (%s): see that no other run uses it", folder, error.strerror)
        return descriptor
    if sign:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} (since {time.ctime()})\n".encode())
    return descriptor


def _environment() -> str:
    """One line for the log file."""
    versions = [f"python {platform.python_version()}"]
    for package in ("dinox", "detectron2", "torch", "torchvision", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(
        [*versions, f"CUDA {torch.version.cuda}", f"GPUs: {', '.join(gpus) or 'none'}", platform.platform()]
    )
