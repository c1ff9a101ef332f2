"""``train.deterministic`` (``--deterministic``): the same run twice gives the same weights, bit for bit on the CPU."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dinox.ops.library import backend

logger = logging.getLogger(__name__)

SETTING = "train.deterministic"
SEED = 0
"""Of a deterministic run whose ``train.seed`` says "another one each time"."""

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_CHOICES = (":4096:8", ":16:8")
"""With which cuBLAS repeats itself, by its documentation; the first is the faster one and takes 24 MiB more."""

_ONLY_ON_GPUS = {
    "gradients of bilinear interpolation": "finer maps of Co-DETR's auxiliary heads",
    "gradients of bicubic interpolation": "position embeddings of ViTs",
    "cumsum": "positions, of whole numbers, which are exact all the same",
}
"""What torch has no deterministic kernel for on CUDA (see torch.use_deterministic_algorithms) -> where it is."""

_REFERENCE = {"gradients of grid_sample": "deformable attention without its compiled kernel"}


def deterministic_seed(seed: int) -> int:
    """``train.seed`` of a deterministic run: ``SEED`` in place of a negative one, which the log says."""
    if seed >= 0:
        return seed
    logger.info("%s without train.seed: the seed is %d", SETTING, SEED)
    return SEED


@contextmanager
def deterministic_algorithms(setting: object, device: torch.device) -> Iterator[bool]:
    """While the context lasts, torch takes deterministic kernels, and so does deformable attention's backward pass.

    On CUDA, operators without one warn; a log line names those that models here have. To be entered before CUDA is
    used. ``setting``: that of a config; None: there is none, which is false. The context gives whether it is true.

    Raises ValueError: a setting that is neither true nor false, an environment that configures cuBLAS otherwise.
    """
    check_deterministic(setting, device)
    if not setting:
        yield False
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        _configure_cublas()
        _log_what_differs()
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    efficient_attention = torch.backends.cuda.mem_efficient_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    # Where operators only warn, its backward pass is not deterministic (other ways of attention are).
    torch.backends.cuda.enable_mem_efficient_sdp(efficient_attention and not on_gpu)
    try:
        yield True
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        torch.backends.cuda.enable_mem_efficient_sdp(efficient_attention)


def check_deterministic(setting: object, device: torch.device | None = None) -> None:
    """Raises ValueError as ``deterministic_algorithms`` does. ``device``: None: of the setting alone."""
    if setting is not None and not isinstance(setting, bool):
        raise ValueError(f"{SETTING}: expected true or false, got {setting!r}")
    given = os.environ.get(_CUBLAS, _CUBLAS_CHOICES[0])
    if setting and device is not None and device.type == "cuda" and given not in _CUBLAS_CHOICES:
        raise ValueError(
            f"{SETTING}: the environment has {_CUBLAS}={given}, with which cuBLAS does not repeat itself: expected "
            f"{' or '.join(_CUBLAS_CHOICES)}. Set one of these, or unset it"
        )


def _configure_cublas() -> None:
    if _CUBLAS not in os.environ:
        os.environ[_CUBLAS] = _CUBLAS_CHOICES[0]
        if torch.cuda.is_initialized():
            logger.warning("%s: CUDA was in use before %s could be set: set it in the environment", SETTING, _CUBLAS)


def _log_what_differs() -> None:
    operators = dict(_ONLY_ON_GPUS)
    if backend("cuda") == "reference":
        operators |= _REFERENCE
    listed = "; ".join(f"{name} ({where})" for name, where in operators.items())
    logger.warning(
        "%s on CUDA: torch has no deterministic kernels for %s. All else repeats itself; torch warns where another "
        "operator does not",
        SETTING,
        listed,
    )
