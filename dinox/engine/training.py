"""Training and evaluation from a LazyConfig: detectron2's trainer, hooks and writers, in the order of its own script.

Both functions check all that can be checked first; only then is the output folder created.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial

import torch
from detectron2.config import instantiate
from detectron2.data import MapDataset, MetadataCatalog
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from dinox.checkpoint import describe, read_description
from dinox.checkpoint.loading import Checkpointer, load_weights
from dinox.checkpoint.reading import EMA
from dinox.checkpoint.run_files import check_not_the_best_alone
from dinox.config.calls import innermost_evaluator
from dinox.data.checks import check_data, dataset_names
from dinox.data.conversions import conversions_counted
from dinox.data.skipping import SkippingLoader
from dinox.data.workers import explained_losses_of_test_workers
from dinox.engine.averaging import AveragedState, WeightAverage
from dinox.engine.checkpoint_and_config import number_classes_like, warn_of_another_model
from dinox.engine.determinism import deterministic_algorithms
from dinox.engine.evaluations import Evaluations, Goals, check_metrics, copies_of_weights
from dinox.engine.logs import Console, RunLog
from dinox.engine.lr_scaling import LRScaling
from dinox.engine.matching import MatchingMetricsHook
from dinox.engine.micro_batches import MicroBatches, warn_of_batch_norms
from dinox.engine.mixed_precision import MixedPrecision
from dinox.engine.model_settings import apply_model_settings
from dinox.engine.non_finite import NonFiniteSteps
from dinox.engine.parallel import check_parallel, make_parallel
from dinox.engine.run_checkpoints import RunCheckpoints
from dinox.engine.run_state import RunState, plain_settings
from dinox.engine.settings import check_train_keys, select
from dinox.engine.setup import (
    check_output_folder_is_free,
    check_settings,
    check_space,
    opened_output_folder,
    resolve_device,
    seed_everything,
)
from dinox.engine.statistics import AveragedStatistics
from dinox.engine.stopping import StoppedEarly
from dinox.engine.trainer import Trainer
from dinox.engine.weights import start_weights, weights_to_evaluate
from dinox.engine.writers import RunClock, build_writers
from dinox.evaluation import evaluate_model
from dinox.evaluation.matching import GroundTruthImages
from dinox.modeling import drop_training_parts

logger = logging.getLogger(__name__)

Results = dict[str, float]
Evaluation = Callable[[nn.Module], Results]


def train(cfg: DictConfig, *, resume: bool = False, device: str | None = None, console: Console = "full") -> Results:
    """Train what a LazyConfig describes, evaluating on the way, and return the last evaluation's metrics.

    Args:
        cfg: with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``, as for detectron2's
            ``lazyconfig_train_net.py``. It is not changed.
        resume: continue from the last checkpoint in ``train.output_dir``, if there is one. Without it, a folder that
            holds checkpoints is an error.
        device: "cpu" or "cuda", which then must exist. By default ``train.device``, or the CPU where there is no GPU.
        console: "full", "progress" or "off"; ``log.txt`` in the output folder has everything.

    Returns metrics under flat names (see ``dinox.evaluation.evaluate_model``); empty without
    ``dataloader.evaluator``, and on all ranks but the first.

    Raises ValueError (of various kinds, with one-line messages) for mistakes in config, data or checkpoint,
    FloatingPointError when the loss is not finite, and TrainingStopped, a SystemExit, when SIGTERM or Ctrl-C asked to
    stop: the step was finished and saved.
    """
    with RunLog(console=console) as log, conversions_counted(), ExitStack() as stack:
        _require(cfg, "model", "dataloader.train", "optimizer.params", "lr_multiplier", "train.max_iter")
        check_settings(cfg)
        check_parallel(cfg)
        check_output_folder_is_free(cfg.train.output_dir)
        _check_checkpoints(cfg.train.output_dir, resume=resume)
        resolved = resolve_device(cfg.train.device, requested=device)
        deterministic = stack.enter_context(deterministic_algorithms(cfg.train.get("deterministic"), resolved))
        _check_data_once(cfg, training=True)
        evaluation = _prepare_evaluation(cfg) if "evaluator" in cfg.dataloader else None
        check_metrics(cfg, evaluation)
        seed = seed_everything(cfg.train.get("seed", -1), deterministic=deterministic)
        run = _TrainingRun(cfg, device=resolved, resume=resume, evaluation=evaluation, seed=seed)
        if run.evaluations.has_ended:
            run.close()
            logger.info("Nothing to do, the run ended early: %s", run.evaluations.why_ended())
            return run.results
        # Nothing is left that can be checked.
        with opened_output_folder(cfg.train.output_dir, cfg=cfg, log=log) as output_dir, closing(run):
            check_space(output_dir, run.model, copies=copies_of_weights(cfg))
            logger.debug("Model:\n%s", run.model)
            logger.info("Training from iteration %d to %d", run.start, cfg.train.max_iter)
            logger.info("%s on %d x %s; output: %s", run.precision, comm.get_world_size(), resolved.type, output_dir)
            run.register_writers()
            with run.checkpoints.explained_losses_of_workers(), suppress(StoppedEarly):
                run.trainer.train(run.start, cfg.train.max_iter)
            run.report_skipped_images()
        return run.results


def evaluate(
    cfg: DictConfig,
    *,
    resume: bool = False,
    device: str | None = None,
    console: Console = "full",
    wrapper: Callable[..., nn.Module] | None = None,
) -> Results:
    """Evaluate ``train.init_checkpoint``, or with ``resume`` the last checkpoint in ``train.output_dir``.

    Args:
        wrapper: makes what is evaluated of ``model=...``, the model with its weights, for instance with test-time
            augmentation ``partial(AugmentedDetector, views=make_views((1, 0.8)))``.

    Other arguments, results and errors as in ``train``; writes nothing but what ``dataloader.evaluator`` writes.
    """
    with RunLog(console=console), conversions_counted(), ExitStack() as stack:
        _require(cfg, "model", "dataloader.test", "dataloader.evaluator", "train.device")
        check_train_keys(cfg)
        resolved = resolve_device(cfg.train.device, requested=device)
        deterministic = stack.enter_context(deterministic_algorithms(cfg.train.get("deterministic"), resolved))
        weights = weights_to_evaluate(cfg, resume=resume)
        _check_data_once(cfg, training=False)
        evaluation = _prepare_evaluation(cfg)
        seed_everything(cfg.train.get("seed", -1), deterministic=deterministic)
        model = instantiate(cfg.model).to(resolved)
        load_weights(model, weights, purpose="evaluate", ema=cfg.train.get("use_ema_weights", True))
        drop_training_parts(model)
        description = read_description(weights)
        warn_of_another_model(description, cfg)
        number_classes_like(description, cfg)
        with explained_losses_of_test_workers():
            return evaluation(model if wrapper is None else wrapper(model=model))


class _TrainingRun:
    """The objects of one training run, with the weights it starts from. ``start``: the iteration to begin with."""

    def __init__(
        self, cfg: DictConfig, *, device: torch.device, resume: bool, evaluation: "Evaluation | None", seed: int
    ):
        settings = plain_settings(cfg)
        # The model becomes a part of the config, as in detectron2's script.
        self.cfg = cfg = copy.deepcopy(cfg)
        amp = MixedPrecision.of(cfg)
        self.precision = amp.precision
        self.scheduler = instantiate(cfg.lr_multiplier)
        if not isinstance(self.scheduler, ParamScheduler):
            raise ValueError(f"lr_multiplier: expected a fvcore ParamScheduler, got {type(self.scheduler).__name__}")
        self.model = cfg.optimizer.params.model = instantiate(cfg.model).to(device)
        apply_model_settings(self.model, cfg.train)
        self.checkpointer = Checkpointer(self.model, cfg.train.output_dir)
        self.checkpointer.description = describe(cfg, _class_names(cfg))
        resuming = start_weights(self.checkpointer, cfg, resume=resume)
        self.parallel = make_parallel(cfg, device=device, build=lambda: instantiate(cfg.model).to(device))
        wrapped = self.parallel.wrap(self.model)  # before the optimizer, which takes the parameters that are then there
        optimizer = instantiate(cfg.optimizer)
        self.lr_scaling = LRScaling.of(cfg)
        self.lr_scaling.apply(optimizer)
        warn_of_batch_norms(self.model, cfg.train.get("accumulation_steps") or 1)
        self._train_loader = instantiate(cfg.dataloader.train)
        self.run_state = RunState(
            model=self.model,
            loader=self._train_loader,
            seed=seed,
            total_batch_size=OmegaConf.select(cfg, "dataloader.train.total_batch_size"),
            settings=settings,
        )
        self.trainer = Trainer(
            model=wrapped,
            data_loader=self._first_batch_and_rest(),
            optimizer=optimizer,
            device=device,
            precision=self.precision,
            non_finite=NonFiniteSteps(output_dir=cfg.train.output_dir, **(cfg.train.get("non_finite") or {})),
            micro_batches=MicroBatches(
                accumulation_steps=cfg.train.get("accumulation_steps") or 1, seed=lambda: self.run_state.seed
            ),
            max_skips_in_a_row=amp.max_skips_in_a_row,
        )
        self.checkpointer.add_checkpointable("trainer", self.trainer)
        self._evaluation = evaluation
        self.trainer.register_hooks(self._make_hooks())  # before resuming: their state is in the checkpoint
        self.start = self._resume() if resuming else 0
        self._batches = iter(self._train_loader)  # which begins where the run is resumed
        # Now, so that images that cannot be read show before anything is written.
        self._first_batch = next(self._batches)

    def _first_batch_and_rest(self) -> Iterator[list[dict]]:
        """Runs when training does."""
        yield self._first_batch
        del self._first_batch
        yield from self._batches

    def _resume(self) -> int:
        """Load everything from the last checkpoint. Returns the iteration to continue with."""
        path = self.checkpointer.get_checkpoint_file()
        self.checkpointer.load(path, purpose="resume")
        self.lr_scaling.apply_to_resumed(self.trainer.optimizer)
        # The checkpoint holds the last iteration that was finished.
        start, max_iter = self.run_state.start(self.trainer.iter + 1), self.cfg.train.max_iter
        if start > max_iter:
            raise ValueError(
                f"{path} is at iteration {start}, beyond train.max_iter={max_iter}: raise that, or train into "
                "another train.output_dir"
            )
        logger.info("Resuming from %s", path)
        return start

    def _make_hooks(self) -> list[HookBase | None]:
        train = self.cfg.train
        self.checkpoints = RunCheckpoints(self.checkpointer, run_state=self.run_state, **train.checkpointer)
        average = WeightAverage.of(self.cfg, model=self.model, optimizer=self.trainer.optimizer)
        if average is not None:
            self.checkpointer.add_checkpointable(EMA, AveragedState(average))
        self.evaluations = Evaluations(
            train.eval_period,
            None if self._evaluation is None else self._evaluate,
            checkpoints=self.checkpoints,
            folder=train.output_dir,
            goals=None if self._evaluation is None else Goals.of(self.cfg),
            average=average,
        )
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=self.scheduler),
            AveragedStatistics(model=self.model),
            # Before the checkpoint is written, which shall hold their states.
            average,
            self._make_matching_hook(),
            self.checkpoints,
            self.evaluations,
            RunClock(epochs_per_iteration=_epochs_per_iteration(self.cfg)),
        ]

    def _make_matching_hook(self) -> MatchingMetricsHook | None:
        options = self.cfg.train.get("matching_metrics")
        if options is None or not options.enabled:
            return None
        return MatchingMetricsHook(
            model=self.model,
            images=GroundTruthImages.of_test_set(self.cfg, num_images=options.num_images),
            period=options.period,
            top_k=options.top_k,
            whole=self.parallel.whole,
        )

    def register_writers(self) -> None:
        """The last hook, so that it writes what the others measured. It opens files in the output folder."""
        train = self.cfg.train
        writers = []
        if comm.is_main_process():
            writers = build_writers(
                train.output_dir, max_iter=train.max_iter, has_ended=lambda: self.evaluations.has_ended
            )
        self.trainer.register_hooks([hooks.PeriodicWriter(writers, train.log_period)])

    def report_skipped_images(self) -> None:
        if isinstance(self._train_loader, SkippingLoader):
            self._train_loader.summarise()

    def close(self) -> None:
        """End the processes of the data loader. The garbage collector would wait 5 seconds for each."""
        close = getattr(self._batches, "close", None)  # of a generator
        if close is not None:
            close()

    @property
    def results(self) -> Results:
        return self.evaluations.results

    def _evaluate(self) -> Results:
        return self._evaluation(self.parallel.whole(self.trainer.model))


def _epochs_per_iteration(cfg: DictConfig) -> float | None:
    images = [OmegaConf.select(cfg, key) for key in ("dataloader.train.total_batch_size", "schedule.images_per_epoch")]
    return None if None in images else images[0] / images[1]


def _class_names(cfg: DictConfig) -> list[str] | None:
    """Of the training data, if its datasets are registered and name them."""
    names = dataset_names(cfg.dataloader.train)
    return MetadataCatalog.get(names[0]).get("thing_classes") if names else None


def _require(cfg: DictConfig, *keys: str) -> None:
    missing = [key for key in keys if select(cfg, key) is None]
    if missing:
        raise ValueError(
            f"this config has no {', '.join(missing)}: it is not one to train or evaluate (found: {', '.join(cfg)})"
        )


def _check_checkpoints(output_dir: str, *, resume: bool) -> None:
    """Nothing of an earlier run is to be replaced."""
    if not Checkpointer(nn.Module(), output_dir).has_checkpoint():
        check_not_the_best_alone(output_dir)
    elif not resume:
        raise ValueError(
            f"train.output_dir={output_dir} holds checkpoints of an earlier run: resume it (--resume), or give another "
            "train.output_dir"
        )


def _prepare_evaluation(cfg: DictConfig) -> Evaluation:
    """Build loader and evaluator and read the first image now, so that mistakes do not wait until an epoch is over."""
    innermost = innermost_evaluator(cfg)
    names = innermost.get("dataset_name") if isinstance(innermost, DictConfig) else None
    if isinstance(names, ListConfig):
        raise ValueError(
            f"dataloader.test.dataset.names={list(names)}: the evaluator takes one dataset, not a list. Give one "
            f"name, dataloader.test.dataset.names={names[0] if names else 'NAME'}, and evaluate others in runs of "
            "their own"
        )
    loader = instantiate(cfg.dataloader.test)
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, MapDataset):
        dataset[0]
    return partial(evaluate_model, data_loader=loader, evaluator=instantiate(cfg.dataloader.evaluator))


def _check_data_once(cfg: DictConfig, *, training: bool) -> None:
    """On the first rank; the others wait for it, since datasets may be written when they are first asked for."""
    if comm.is_main_process():
        check_data(cfg, training=training)
    comm.synchronize()
