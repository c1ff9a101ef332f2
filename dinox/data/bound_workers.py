"""Processes that read training images: they end with the process that they read for, and not before it."""

import os
import signal
from collections.abc import Callable, Iterable
from functools import partial

from torch.multiprocessing import _prctl_pr_set_pdeathsig
from torch.utils.data import DataLoader


def bind_workers(loader: Iterable) -> None:
    """Of a loader that ``build_detection_train_loader`` made, before it is iterated.

    A worker is killed when its process ends, however that ends: else it would keep the connections to other ranks open,
    which would wait. A first SIGTERM or SIGINT, which torchrun, SLURM and terminals send to all processes, leaves it
    alive: the step under way may need its images. A second one ends it.
    """
    # Batches of images of one shape are made around the loader.
    inner = loader if isinstance(loader, DataLoader) else getattr(loader, "dataset", None)
    if isinstance(inner, DataLoader):
        inner.worker_init_fn = partial(_begin, inner.worker_init_fn, os.getpid())


def _begin(before: Callable[[int], None] | None, parent: int, worker_id: int) -> None:
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _pass_over_once)
    if before is not None:
        before(worker_id)


def _pass_over_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
