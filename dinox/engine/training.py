"""Training and evaluation from a LazyConfig: detectron2's trainer, hooks and writers, in the order of its own script.

Both functions check all that can be checked first; only then is the output folder created.
"""

import copy
import logging
from collections.abc import Callable

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.checkpoint.loading import Checkpointer, load_weights
from dinox.data.checks import check_data
from dinox.evaluation import evaluate_model

from .logs import Console, RunLog
from .setup import open_output_folder, resolve_device, seed_everything
from .trainer import Trainer
from .writers import build_writers

logger = logging.getLogger(__name__)

Results = dict[str, float]


def train(cfg: DictConfig, *, resume: bool = False, device: str | None = None, console: Console = "full") -> Results:
    """Train what a LazyConfig describes, evaluating on the way, and return the last evaluation's metrics.

    Args:
        cfg: with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``, as for detectron2's
            ``lazyconfig_train_net.py``. It is not changed.
        resume: continue from the last checkpoint in ``train.output_dir``, if there is one.
        device: "cpu" or "cuda", which then must exist. By default ``train.device``, or the CPU where there is no GPU.
        console: "full", "progress" or "off"; ``log.txt`` in the output folder has everything.

    Returns metrics under flat names (see :func:`dinox.evaluation.evaluate_model`); empty without
    ``dataloader.evaluator``, and on all ranks but the first.

    Raises ValueError (of various kinds, with one-line messages) for mistakes in config, data or checkpoint, and
    FloatingPointError when the loss is not finite.
    """
    with RunLog(console=console) as log:
        _require(cfg, "model", "dataloader.train", "optimizer.params", "lr_multiplier", "train.max_iter")
        resolved = resolve_device(cfg.train.device, requested=device)
        _check_data_once(cfg, training=True)
        seed_everything(cfg.train.get("seed", -1))
        run = _TrainingRun(cfg, device=resolved, resume=resume)
        # Nothing is left that can be checked.
        output_dir = open_output_folder(cfg.train.output_dir, cfg=cfg, log=log)
        logger.debug("Model:\n%s", run.model)
        logger.info("Training from iteration %d to %d", run.start, cfg.train.max_iter)
        logger.info("%s on %d x %s; output: %s", run.precision, comm.get_world_size(), resolved.type, output_dir)
        run.trainer.register_hooks(run.make_hooks())
        run.trainer.train(run.start, cfg.train.max_iter)
        return run.results


def evaluate(cfg: DictConfig, *, resume: bool = False, device: str | None = None, console: Console = "full") -> Results:
    """Evaluate ``train.init_checkpoint``, or with ``resume`` the last checkpoint in ``train.output_dir``.

    Other arguments, results and errors as in :func:`train`; writes nothing but what ``dataloader.evaluator`` writes.
    """
    with RunLog(console=console):
        _require(cfg, "model", "dataloader.test", "dataloader.evaluator", "train.device")
        resolved = resolve_device(cfg.train.device, requested=device)
        weights = _weights_to_evaluate(cfg, resume)
        _check_data_once(cfg, training=False)
        seed_everything(cfg.train.get("seed", -1))
        model = instantiate(cfg.model).to(resolved)
        load_weights(model, weights, purpose="evaluate")
        return _evaluate(cfg, model)


class _TrainingRun:
    """The objects of one training run, with the weights it starts from. ``start``: the iteration to begin with."""

    def __init__(self, cfg: DictConfig, *, device: torch.device, resume: bool):
        # The model becomes a part of the config, as in detectron2's script.
        self.cfg = cfg = copy.deepcopy(cfg)
        self.precision = cfg.train.amp.get("dtype", "bf16") if cfg.train.amp.enabled else "fp32"
        self.scheduler = instantiate(cfg.lr_multiplier)
        if not isinstance(self.scheduler, ParamScheduler):
            raise ValueError(f"lr_multiplier: expected a fvcore ParamScheduler, got {type(self.scheduler).__name__}")
        self.model = cfg.optimizer.params.model = instantiate(cfg.model).to(device)
        optimizer = instantiate(cfg.optimizer)
        self.checkpointer = Checkpointer(self.model, cfg.train.output_dir)
        resuming = self._start_weights(resume)
        self.trainer = Trainer(
            model=create_ddp_model(self.model, **_ddp_options(cfg.train.ddp, device)),
            data_loader=instantiate(cfg.dataloader.train),
            optimizer=optimizer,
            device=device,
            precision=self.precision,
        )
        self.checkpointer.add_checkpointable("trainer", self.trainer)
        self.start = self._resume() if resuming else 0
        self.results: Results = {}

    def _start_weights(self, resume: bool) -> bool:
        """Load the initial weights, unless there is a checkpoint to resume; returns whether there is."""
        folder, found = self.cfg.train.output_dir, self.checkpointer.has_checkpoint()
        if resume and found:
            return True
        if resume:
            logger.warning("No checkpoint to resume in %s: starting anew", folder)
        elif found:
            logger.warning("%s holds checkpoints of an earlier run; those of the same name will be replaced", folder)
        if self.cfg.train.init_checkpoint:
            load_weights(self.model, self.cfg.train.init_checkpoint)
        return False

    def _resume(self) -> int:
        """Load everything from the last checkpoint. Returns the iteration to continue with."""
        path = self.checkpointer.get_checkpoint_file()
        self.checkpointer.load(path, purpose="resume")
        # The checkpoint holds the last iteration that was finished.
        start, max_iter = self.trainer.iter + 1, self.cfg.train.max_iter
        if start > max_iter:
            raise ValueError(
                f"{path} is at iteration {start}, beyond train.max_iter={max_iter}: raise that, or train into "
                "another train.output_dir"
            )
        logger.info("Resuming from %s", path)
        return start

    def make_hooks(self) -> list[HookBase | None]:
        train, is_main = self.cfg.train, comm.is_main_process()
        writers = build_writers(train.output_dir, max_iter=train.max_iter) if is_main else []
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=self.scheduler),
            hooks.PeriodicCheckpointer(self.checkpointer, **train.checkpointer) if is_main else None,
            hooks.EvalHook(train.eval_period, self._evaluate),
            # Last, so that it writes what the others measured.
            hooks.PeriodicWriter(writers, train.log_period),
        ]

    def _evaluate(self) -> Results:
        if "evaluator" in self.cfg.dataloader:
            self.results = _evaluate(self.cfg, self.trainer.model)
        return self.results


def _ddp_options(options: DictConfig, device: torch.device) -> dict:
    # detectron2 gives each rank the GPU of its number, also where there are no GPUs.
    return {**options, "device_ids": None} if device.type == "cpu" else dict(options)


def _require(cfg: DictConfig, *keys: str) -> None:
    missing = [key for key in keys if OmegaConf.select(cfg, key) is None]
    if missing:
        raise ValueError(
            f"this config has no {', '.join(missing)}: it is not one to train or evaluate (found: {', '.join(cfg)})"
        )


def _evaluate(cfg: DictConfig, model: nn.Module | Callable) -> Results:
    return evaluate_model(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))


def _check_data_once(cfg: DictConfig, *, training: bool) -> None:
    """On the first rank; the others wait for it, since datasets may be written when they are first asked for."""
    if comm.is_main_process():
        check_data(cfg, training=training)
    comm.synchronize()


def _weights_to_evaluate(cfg: DictConfig, resume: bool) -> str:
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
