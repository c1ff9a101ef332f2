"""Schedules in epochs.

Configs say how many epochs to train and when to drop the learning rate; the number of iterations follows from the
size of the dataset and of the batch. So another batch size keeps the schedule, and a shorter ``train.max_iter``
shrinks it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from omegaconf import OmegaConf

COCO_IMAGES_PER_EPOCH = 120_000
"""What one epoch of COCO counts as in this field's schedules, so that 12 epochs of batch 16 are the well known 90,000
iterations. train2017 has 118,287 images, 117,266 of them with objects."""

_RESOLUTION = 1_000_000  # a milestone is kept to a millionth of the schedule: exact up to 500,000 iterations


def iterations(epochs: float, images_per_epoch: int, batch_size: int) -> int:
    """Number of training iterations, at least 1.

    In configs:
    ``"${dinox.iterations:${schedule.epochs},${schedule.images_per_epoch},${dataloader.train.total_batch_size}}"``.
    """
    for name, value in (
        ("schedule.epochs", epochs),
        ("schedule.images_per_epoch", images_per_epoch),
        ("dataloader.train.total_batch_size", batch_size),
    ):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"expected {name} to be a number above 0, got {value!r}")
    return max(1, round(epochs * images_per_epoch / batch_size))


# Arithmetic for configs, which are data: it is evaluated after all overrides.
OmegaConf.register_new_resolver("dinox.iterations", iterations, replace=True)


def step_schedule(
    *,
    epochs: float,
    drop_epochs: Sequence[float] = (),
    drop_factor: float = 0.1,
    warmup_epochs: float = 0,
    warmup_factor: float = 0.001,
) -> ParamScheduler:
    """The learning rate is multiplied by ``drop_factor`` after each of ``drop_epochs``.

    ``warmup_epochs``: it first grows linearly from ``warmup_factor`` of its value. A fvcore scheduler, for detectron2's
    ``LRMultiplier``: it only knows the fraction of the training that is done.
    """
    drop_epochs = list(drop_epochs)
    if any(later <= earlier for earlier, later in pairwise([0, *drop_epochs, epochs])):
        raise ValueError(
            f"schedule: expected drop_epochs to grow and to lie between 0 and epochs={epochs}, got {drop_epochs}"
        )
    multiplier = MultiStepParamScheduler(
        values=[drop_factor**drops for drops in range(len(drop_epochs) + 1)],
        milestones=[round(epoch / epochs * _RESOLUTION) for epoch in drop_epochs],
        num_updates=_RESOLUTION,
    )
    return _with_warmup(multiplier, epochs, warmup_epochs, warmup_factor)


def cosine_schedule(
    *, epochs: float, final_factor: float = 0.0, warmup_epochs: float = 0, warmup_factor: float = 0.001
) -> ParamScheduler:
    """The learning rate falls along half a cosine to ``final_factor`` of its value. Warmup as in ``step_schedule``."""
    return _with_warmup(CosineParamScheduler(1.0, final_factor), epochs, warmup_epochs, warmup_factor)


def _with_warmup(
    scheduler: ParamScheduler, epochs: float, warmup_epochs: float, warmup_factor: float
) -> ParamScheduler:
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"schedule: expected 0 <= warmup_epochs < epochs={epochs}, got {warmup_epochs}")
    if warmup_epochs == 0:
        return scheduler
    return WarmupParamScheduler(scheduler, warmup_factor, warmup_epochs / epochs)
