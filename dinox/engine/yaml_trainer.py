"""detectron2's DefaultTrainer for detection transformers described in yaml."""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from dinox.checkpoint import Checkpointer, describe, load_weights
from dinox.checkpoint.reading import EMA
from dinox.checkpoint.run_files import check_not_the_best_alone
from dinox.config import ConfigError, lazy_config
from dinox.config.calls import innermost_evaluator
from dinox.data.checks import check_data
from dinox.data.skipping import SkippingLoader
from dinox.engine.averaging import AveragedState, WeightAverage
from dinox.engine.determinism import check_deterministic, deterministic_algorithms
from dinox.engine.evaluations import Evaluations, Goals, copies_of_weights
from dinox.engine.lr_scaling import LRScaling
from dinox.engine.micro_batches import MicroBatches, warn_of_batch_norms
from dinox.engine.mixed_precision import MixedPrecision
from dinox.engine.model_settings import apply_model_settings
from dinox.engine.non_finite import NonFiniteSteps
from dinox.engine.parallel import make_parallel
from dinox.engine.run_checkpoints import RunCheckpoints
from dinox.engine.run_state import RunState, plain_settings
from dinox.engine.setup import check_output_folder_is_free, check_settings, check_space, locked_output_folder
from dinox.engine.statistics import AveragedStatistics
from dinox.engine.stopping import StoppedEarly
from dinox.engine.trainer import Trainer
from dinox.engine.writers import RunClock, build_writers
from dinox.engine.yaml_checks import check_goals, check_processes
from dinox.evaluation import evaluate_model
from dinox.modeling import drop_training_parts
from dinox.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)


class DinoxTrainer(DefaultTrainer):
    """Use it as a DefaultTrainer, with a config that ``dinox.add_dinox_config`` was called on.

    What differs: AdamW with the papers' parameter groups, the whole gradient clipped; dinox's mapper, loader and checks
    of the data, before anything is built; ``MODEL.DEVICE: cuda`` falls back to the CPU where there is no GPU; mixed
    precision is bf16 unless ``MODEL.DINOX.OVERRIDES`` has ``train.amp.dtype=fp16``; a loss that is not finite is an
    error that names the images; weights that do not fit are an error; checkpoints hold optimizer, schedule, scaler,
    random numbers and the position in the data on every detectron2, so that a resumed run is the one that was not
    interrupted; SIGTERM and Ctrl-C finish the step, save and raise TrainingStopped, a SystemExit with 143 or 130.

    The methods that DefaultTrainer offers for overriding (``build_optimizer``, ``build_train_loader``, ...) are there.

    Raises ConfigError for mistakes in the config, DataError for those in the data.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer's own, which builds a trainer and a checkpointer that we do not want.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        with _logging_as_detectron2():
            self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
            self.max_iter = cfg.SOLVER.MAX_ITER
            self._lazy = lazy = lazy_config(cfg)
            check_settings(lazy)
            check_processes(lazy)
            self._deterministic = lazy.train.get("deterministic")
            check_output_folder_is_free(cfg.OUTPUT_DIR, setting="OUTPUT_DIR")
            if comm.is_main_process():
                check_data(lazy)
            comm.synchronize()  # datasets may be written when they are first asked for
            check_goals(lazy, cfg.DATASETS.TEST, partial(self.build_evaluator, cfg))
            model = self.build_model(cfg)
            self._trainer = self._build_trainer(lazy, model)
            self._run_state = RunState(
                model=model,
                loader=self.data_loader,
                # Who set none up seeded with a random one.
                seed=cfg.SEED if cfg.SEED >= 0 else torch.initial_seed() % 2**31,
                total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
                settings=plain_settings(lazy),
            )
            self.scheduler = self.build_lr_scheduler(cfg, self._trainer.optimizer)
            self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
            self.checkpointer.description = describe(
                lazy, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
            )
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            self.register_hooks(self.build_hooks())

    def _build_trainer(self, lazy: DictConfig, model: nn.Module) -> Trainer:
        device, amp = next(model.parameters()).device, MixedPrecision.of(lazy)
        check_deterministic(self._deterministic, device)
        apply_model_settings(model, lazy.train)
        parallel = make_parallel(lazy, device=device, build=partial(self.build_model, self.cfg))
        optimizer = self.build_optimizer(self.cfg, model)
        self._lr_scaling = LRScaling.of(lazy)
        self._lr_scaling.apply(optimizer)
        warn_of_batch_norms(model, lazy.train.get("accumulation_steps") or 1)
        return Trainer(
            model=parallel.wrap(model),
            data_loader=self.build_train_loader(self.cfg),
            optimizer=optimizer,
            device=device,
            precision=amp.precision,
            non_finite=NonFiniteSteps(output_dir=self.cfg.OUTPUT_DIR, **(lazy.train.get("non_finite") or {})),
            micro_batches=MicroBatches(
                accumulation_steps=lazy.train.get("accumulation_steps") or 1, seed=lambda: self._run_state.seed
            ),
            max_skips_in_a_row=amp.max_skips_in_a_row,
        )

    # ---------------------------------------------------------------------------------------------------- what is built

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """On ``MODEL.DEVICE``, or the CPU where that is a GPU and there is none."""
        name, known = cfg.MODEL.META_ARCHITECTURE, [name for name, _ in META_ARCH_REGISTRY]
        if name not in known:
            raise ConfigError(f"MODEL.META_ARCHITECTURE: detectron2 knows no {name!r}.{did_you_mean(name, known)}")
        if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
            logger.warning("No CUDA device found: running on the CPU (MODEL.DEVICE: cpu silences this line)")
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = "cpu"
        return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW: see ``SOLVER.BASE_LR``, ``BACKBONE_MULTIPLIER``, ``WEIGHT_DECAY``, ``CLIP_GRADIENTS``."""
        optimizer = lazy_config(cfg).optimizer
        optimizer.params.model = model
        return instantiate(optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        return instantiate(lazy_config(cfg).dataloader.train)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        return instantiate(_tested_on(cfg, dataset_name).dataloader.test)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of the LazyConfig, which is COCO's unless it says otherwise."""
        lazy = _tested_on(cfg, dataset_name)
        if lazy.dataloader.get("evaluator") is None:
            raise ConfigError(f"MODEL.DINOX.CONFIG: {cfg.MODEL.DINOX.CONFIG} has no dataloader.evaluator")
        innermost = innermost_evaluator(lazy)
        if len(cfg.DATASETS.TEST) > 1 and "output_dir" in innermost:
            innermost.output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return instantiate(lazy.dataloader.evaluator)

    def build_writers(self) -> list[EventWriter]:
        return build_writers(self.cfg.OUTPUT_DIR, max_iter=self.max_iter, has_ended=lambda: self._evaluations.has_ended)

    def build_hooks(self) -> list[HookBase | None]:
        images, loader = self.cfg.SOLVER.IMS_PER_BATCH, self.data_loader
        epochs = images / len(loader.dataset) if isinstance(loader, SkippingLoader) else None
        built = [
            RunClock(epochs_per_iteration=epochs),
            AveragedStatistics(model=self.checkpointer.model),
            *super().build_hooks(),
        ]
        # In place of DefaultTrainer's two, of which the first is on one rank only.
        ours = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        place = next(i for i, hook in enumerate(built) if isinstance(hook, ours))
        before, after = built[:place], [hook for hook in built[place:] if not isinstance(hook, ours)]
        return [*before, *self._checkpoints_and_evaluation(), *after]

    def _checkpoints_and_evaluation(self) -> list[HookBase | None]:
        cfg = self.cfg
        average = WeightAverage.of(self._lazy, model=self.checkpointer.model, optimizer=self._trainer.optimizer)
        if average is not None:
            self.checkpointer.add_checkpointable(EMA, AveragedState(average))
        self._checkpoints = RunCheckpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, run_state=self._run_state)
        self._evaluations = Evaluations(
            cfg.TEST.EVAL_PERIOD,
            (lambda: self.test(cfg, self.model)) if cfg.DATASETS.TEST else None,
            checkpoints=self._checkpoints,
            folder=cfg.OUTPUT_DIR,
            flatten=partial(_flatten, datasets=cfg.DATASETS.TEST),
            goals=Goals.of(self._lazy) if cfg.DATASETS.TEST else None,
            average=average,
        )
        return [average, self._checkpoints, self._evaluations]

    @property
    def _last_eval_results(self) -> dict[str, Any]:
        """DefaultTrainer's name."""
        return self._evaluations.results

    # ----------------------------------------------------------------------------------------------------- what is done

    def train(self) -> dict[str, Any]:
        """Train from the current iteration to the last, and return the last evaluation's results.

        Raises ValueError if another process trains into ``OUTPUT_DIR``.
        """
        with _logging_as_detectron2(), locked_output_folder(self.cfg.OUTPUT_DIR, setting="OUTPUT_DIR"):
            if self._evaluations.has_ended:
                logger.info("Nothing to do, the run ended early: %s", self._evaluations.why_ended())
                return self._last_eval_results
            copies = copies_of_weights(self._lazy)
            check_space(self.cfg.OUTPUT_DIR, self.model, copies=copies, setting="OUTPUT_DIR")
            device = next(self.model.parameters()).device
            with (
                self._checkpoints.explained_losses_of_workers(),
                contextlib.suppress(StoppedEarly),
                deterministic_algorithms(self._deterministic, device),
            ):
                super().train()
            if isinstance(self.data_loader, SkippingLoader):
                self.data_loader.summarise()
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter, self._trainer.storage = self.iter, self.storage
        self._trainer.run_step()

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """DefaultTrainer's: task -> metric -> value, of each dataset if there are several."""
        evaluators = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(evaluators)} evaluators for the {len(cfg.DATASETS.TEST)} datasets of DATASETS.TEST")
        results = {}
        with _logging_as_detectron2():
            for index, name in enumerate(cfg.DATASETS.TEST):
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
                results[name] = _by_task(evaluate_model(model, cls.build_test_loader(cfg, name), evaluator))
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def evaluate(cls, cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
        """``test`` with ``MODEL.WEIGHTS``, or with the last checkpoint in ``OUTPUT_DIR``.

        Raises CheckpointError unless these are weights of the whole model.
        """
        model = cls.build_model(cfg)
        found = Checkpointer(model, cfg.OUTPUT_DIR)
        weights = found.get_checkpoint_file() if resume and found.has_checkpoint() else cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError(
                f"no weights to evaluate: give MODEL.WEIGHTS, or resume what OUTPUT_DIR={cfg.OUTPUT_DIR} holds"
            )
        with _logging_as_detectron2():
            load_weights(model, weights, purpose="evaluate", ema=lazy_config(cfg).train.get("use_ema_weights", True))
        drop_training_parts(model)
        return cls.test(cfg, model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in ``OUTPUT_DIR``; else start from ``MODEL.WEIGHTS``.

        Raises ValueError if there is a checkpoint, but it is not to be resumed: it would be replaced.
        """
        with _logging_as_detectron2():
            found = self.checkpointer.has_checkpoint()
            if not found:
                check_not_the_best_alone(self.cfg.OUTPUT_DIR, setting="OUTPUT_DIR", start="MODEL.WEIGHTS")
            if found and not resume:
                raise ValueError(
                    f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} holds checkpoints of an earlier run: resume it "
                    "(resume_or_load(resume=True), --resume), or give another OUTPUT_DIR"
                )
            if found:
                self.checkpointer.load(self.checkpointer.get_checkpoint_file(), purpose="resume")
                self._lr_scaling.apply_to_resumed(self.optimizer)
                self.scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
                self.start_iter = self._run_state.start(self.iter + 1)
                if self.start_iter != self.iter + 1:
                    self._set_schedule(self.start_iter)
            elif self.cfg.MODEL.WEIGHTS:
                classes = self.checkpointer.description.get("class_names")
                purpose = "partial" if self._lazy.train.get("allow_partial") else "train"
                ema = self._lazy.train.get("use_ema_weights", True)
                model, weights = self.checkpointer.model, self.cfg.MODEL.WEIGHTS
                load_weights(model, weights, purpose=purpose, class_names=classes, ema=ema)

    def _set_schedule(self, iteration: int) -> None:
        self.scheduler.last_epoch = iteration
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """As that of newer detectron2s: v0.6 leaves the optimizer out."""
        state = super(DefaultTrainer, self).state_dict()
        return state | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "_trainer" not in state_dict:
            raise ValueError(
                "the checkpoint holds no optimizer state, as those of detectron2 v0.6's DefaultTrainer: start another "
                "run from its weights, with MODEL.WEIGHTS and another OUTPUT_DIR"
            )
        super(DefaultTrainer, self).load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])


def _tested_on(cfg: CfgNode, dataset_name: str) -> DictConfig:
    lazy = lazy_config(cfg)
    lazy.dataloader.test.dataset.names = dataset_name
    return lazy


def _flatten(results: dict[str, Any], *, datasets: Sequence[str]) -> dict[str, float]:
    """``bbox/AP`` and so on; of several datasets under the datasets' names, and those of the first one without, too."""
    first = results.get(datasets[0], {}) if len(datasets) > 1 else {}
    return {**flatten_results_dict(results), **flatten_results_dict(first)}


def _by_task(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """``{"bbox/AP": 1}`` -> ``{"bbox": {"AP": 1}}``"""
    nested: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        task, _, metric = name.partition("/")
        nested.setdefault(task, {})[metric] = value
    return nested


@contextlib.contextmanager
def _logging_as_detectron2() -> Iterator[None]:
    """Users of DefaultTrainer have set up detectron2's logger. Inside the block, ours writes where that one does."""
    ours, theirs = logging.getLogger("dinox"), logging.getLogger("detectron2")
    added = [handler for handler in theirs.handlers if handler not in ours.handlers]
    before = ours.level, ours.propagate
    for handler in added:
        ours.addHandler(handler)
    ours.setLevel(theirs.level)
    ours.propagate = theirs.propagate
    try:
        yield
    finally:
        for handler in added:
            ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]
