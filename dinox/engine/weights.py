"""Which weights a training run starts from, and which ones are evaluated."""

import logging

from omegaconf import DictConfig
from torch import nn

from dinox.checkpoint.loading import Checkpointer, load_weights

logger = logging.getLogger(__name__)


def start_weights(checkpointer: Checkpointer, cfg: DictConfig, *, resume: bool) -> bool:
    """Load the initial weights, unless there is a checkpoint to resume; returns whether there is.

    ``checkpointer``: of the model and its output folder, with the description of both.
    """
    if resume and checkpointer.has_checkpoint():
        return True
    train = cfg.train
    if resume:
        logger.warning("No checkpoint to resume in %s: starting anew", train.output_dir)
    if train.init_checkpoint:
        load_weights(
            checkpointer.model,
            train.init_checkpoint,
            purpose="partial" if train.get("allow_partial") else "train",
            class_names=checkpointer.description.get("class_names"),
            ema=train.get("use_ema_weights", True),
        )
    return False


def weights_to_evaluate(cfg: DictConfig, *, resume: bool) -> str:
    """``train.init_checkpoint``, or the last checkpoint of the run in ``train.output_dir``. Raises ValueError."""
    if not resume:
        if not cfg.train.init_checkpoint:
            raise ValueError(
                "no weights to evaluate: give train.init_checkpoint=FILE, or resume to take train.output_dir's last"
            )
        return cfg.train.init_checkpoint
    checkpointer = Checkpointer(nn.Module(), cfg.train.output_dir)
    if not checkpointer.has_checkpoint():
        raise ValueError(f"no weights to evaluate: train.output_dir={cfg.train.output_dir} holds no checkpoint")
    return checkpointer.get_checkpoint_file()
