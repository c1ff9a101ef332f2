"""What has to be settled before a run: device, random seeds, output folder."""

import importlib.metadata
import logging
import os
import platform
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, OmegaConf

from dinox.engine.logs import RunLog

logger = logging.getLogger(__name__)

_LEAST = {
    "train.max_iter": 1,
    "train.log_period": 1,
    "train.eval_period": 0,  # none before the end
    "train.checkpointer.period": 1,
    "train.checkpointer.max_to_keep": 1,
    "dataloader.train.total_batch_size": 1,
}
"""The least value of the training loop's numbers."""


def check_settings(cfg: DictConfig) -> None:
    """Check the training loop's numbers where the config has them. Raises ValueError naming key and value."""
    for key, least in _LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{key}: expected a whole number of at least {least}, got {value!r}")
    batch, processes = OmegaConf.select(cfg, "dataloader.train.total_batch_size"), comm.get_world_size()
    if batch is not None and batch % processes:
        raise ValueError(
            f"dataloader.train.total_batch_size={batch} cannot be shared by {processes} processes: give a multiple of "
            f"{processes}"
        )


def resolve_device(configured: str, *, requested: str | None = None) -> torch.device:
    """The device to run on.

    Args:
        configured: the config's. If it is a GPU and there is none, the CPU takes its place, and a log line says so.
        requested: what the user asked for in so many words. If there is none, that is a ValueError.
    """
    name = configured if requested is None else requested
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"train.device: expected 'cpu' or 'cuda', got {name!r}") from error
    if device.type != "cuda" or torch.cuda.is_available():
        return device
    if requested is not None:
        raise ValueError(
            f"train.device={requested}: torch {torch.__version__} finds no CUDA device here. Leave the setting out or "
            "give train.device=cpu; if there is a GPU, check the driver with nvidia-smi"
        )
    logger.warning("No CUDA device found: running on the CPU (train.device=cpu silences this line)")
    return torch.device("cpu")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, differently on each rank. Negative: another seed in each run, which is logged."""
    seed_all_rng(None if seed < 0 else seed + comm.get_rank())


def open_output_folder(folder: str | os.PathLike, *, cfg: DictConfig, log: RunLog) -> Path:
    """Create the folder of a run with ``config.yaml`` and ``log.txt``. To be called when all checks have passed."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"train.output_dir cannot be created: {error.strerror}", str(folder)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"train.output_dir={folder} cannot be written: choose another folder")
    log.open_file(folder)
    if comm.is_main_process():
        logger.debug("Environment: %s", _environment())
        LazyConfig.save(cfg, str(folder / "config.yaml"))
    return folder


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
