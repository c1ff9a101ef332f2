"""Training and evaluation on detectron2's trainer."""

from .optimizer import ClippedAdamW, get_optimizer_params
from .schedule import cosine_schedule, step_schedule
from .trainer import Trainer
from .training import evaluate, train

__all__ = [
    "ClippedAdamW",
    "Trainer",
    "cosine_schedule",
    "evaluate",
    "get_optimizer_params",
    "step_schedule",
    "train",
]
