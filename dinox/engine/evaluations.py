"""Evaluations during training, and what follows from them: the best checkpoint, and an early end."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig

from dinox.checkpoint import CheckpointError
from dinox.checkpoint.run_files import BEST, LAST_EVALUATION
from dinox.checkpoint.writing import writing_errors
from dinox.engine.averaging import WeightAverage
from dinox.engine.goals import BestValue, unknown_metric
from dinox.engine.options import (
    DEFAULT_METRIC,
    BestCheckpointOptions,
    EarlyStoppingOptions,
    EmaOptions,
    read_options,
)
from dinox.engine.run_checkpoints import RunCheckpoints
from dinox.engine.stopping import StoppedEarly
from dinox.evaluation.metric_names import known_metrics
from dinox.utils.whole_files import written_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goals:
    """best: of the checkpoint to keep. stopping: what training has to improve, within ``patience`` evaluations. None:
    not wanted."""

    best: BestValue | None = None
    stopping: BestValue | None = None
    patience: int = 1

    @classmethod
    def of(cls, cfg: DictConfig) -> "Goals":
        """As ``train.best_checkpoint`` and ``train.early_stopping`` of a LazyConfig want it."""
        best, stopping = (read_options(cfg, kind) for kind in (BestCheckpointOptions, EarlyStoppingOptions))
        return cls(
            best=best and BestValue.of(best),
            stopping=stopping and BestValue.of(stopping),
            patience=stopping.patience if stopping else 1,
        )

    @property
    def metrics(self) -> list[BestValue]:
        return [goal for goal in (self.best, self.stopping) if goal is not None]

    @property
    def is_given_up(self) -> bool:
        return self.stopping is not None and self.stopping.waited >= self.patience


@dataclass(frozen=True)
class _OfWeights:
    """The evaluation of a checkpoint's weights. is_due: by the period that the run had. is_done: what came of it is in
    the checkpoint."""

    is_due: bool
    is_done: bool


class Evaluations(hooks.EvalHook):
    """Evaluates every ``period`` iterations, and at the end: the averaged weights, where there are some.

    The weights with the best value of a metric are kept in ``model_best.pth``: as "model" those that were evaluated,
    without an optimizer, so that nobody resumes from it (detectron2's ``BestCheckpointer`` tags its file as the last
    checkpoint, and forgets the best value when it is resumed). When a metric has not improved for ``patience``
    evaluations in a row, training ends as it would after its last iteration, with ``model_final.pth``.

    Evaluation follows the checkpoint of its iteration, so that this is not lost if evaluation fails. What came of it is
    in the next one, and until then in the file ``last_evaluation``: a run that is resumed in between takes it from
    there, and evaluates anew if it is not there either, but was due. So it goes on as the run that was not interrupted,
    also with other batches or another period: what is due is told by the checkpoint, and the file counts images.

    A run that fails, or that a signal ends, in whichever step, is not evaluated at its end.

    To be registered on all ranks, after ``checkpoints``.

    Args:
        period: in iterations; 0: only at the end.
        evaluate: gives metrics on the first rank, flat or by task. None: nothing is evaluated.
        flatten: makes ``bbox/AP`` and so on of them, which goals are named by.
        folder: of the run.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict[str, Any]] | None,
        *,
        checkpoints: RunCheckpoints,
        folder: str,
        flatten: Callable[[dict[str, Any]], Mapping[str, float]] = flatten_results_dict,
        goals: Goals | None = None,
        average: WeightAverage | None = None,
    ):
        super().__init__(period, self._evaluate_and_judge)
        self._evaluate, self._flatten, self._average = evaluate, flatten, average
        self._checkpoints, self._folder, self._goals = checkpoints, Path(folder), goals or Goals()
        self._evaluated: int | None = None  # iterations done at the last evaluation of this process
        self._has_ended = False
        self._resumed = _OfWeights(is_due=False, is_done=False)
        self._known: dict[str, Any] | None = None  # results of the next evaluation, which then need not be made
        self.results: dict[str, Any] = {}
        """Of the last evaluation."""

    @property
    def has_ended(self) -> bool:
        """Is a run that is resumed one that ended early, and would end again?"""
        return self._has_ended and self._goals.is_given_up

    # ------------------------------------------------------------------------------------------------------------- when

    def before_step(self) -> None:
        """Make up for the evaluation of the checkpoint that is resumed."""
        start = self.trainer.start_iter
        if self.trainer.iter != start or self._evaluate is None:
            return
        self._has_ended = False  # it goes on
        images = self._checkpoints.run_state.images_before
        self._forget_later_than(images)
        if start == 0 or self._resumed.is_done:
            return
        self._known = self._recorded(images)
        if self._known is not None or (self._resumed.is_due and self._period > 0):
            self._go_to(start - 1)
            self._do_eval()
            self._known = None
            self._end_if_given_up()
            self._go_to(start)

    def after_step(self) -> None:
        super().after_step()
        self._end_if_given_up()

    def after_train(self) -> None:
        if self._is_finished():
            self._do_eval()
        del self._func  # as EvalHook does, whose condition also holds where the last step raised

    def _is_finished(self) -> bool:
        """The trainer counts on behind its last step: to ``max_iter``, or beyond where no step was left to do."""
        return self.trainer.iter >= self.trainer.max_iter and self.trainer.iter > self.trainer.start_iter

    def _do_eval(self) -> None:
        if self._evaluate is not None:
            super()._do_eval()

    def _go_to(self, iteration: int) -> None:
        self.trainer.iter = self.trainer.storage.iter = iteration

    def _end_if_given_up(self) -> None:
        if not self._goals.is_given_up or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        self._has_ended = True
        self._checkpoints.save_final()
        logger.info("Training ends after %d iterations: %s", self.trainer.iter + 1, self.why_ended())
        raise StoppedEarly

    def why_ended(self) -> str:
        stopping = self._goals.stopping
        evaluations = f"{stopping.waited} evaluation{'s' if stopping.waited > 1 else ''}"
        return f"{stopping.metric} has not improved in {evaluations} (best: {stopping}; {stopping.setting})"

    # ------------------------------------------------------------------------------------------------------------- what

    def _evaluate_and_judge(self) -> dict[str, Any]:
        iterations = min(self.trainer.iter + 1, self.trainer.max_iter)
        with self._weights():
            found = self._known
            if found is None:
                with self._checkpoints.interruptible():
                    found = _plain(self._evaluate() or {})
            found = found if comm.is_main_process() else {}
            self.results, self._evaluated = found, iterations
            self._judge(self._flatten(found), iterations)
        if comm.is_main_process():
            self._record(iterations)
        return found

    def _weights(self) -> AbstractContextManager:
        if self._average is None:
            return nullcontext()
        logger.info("Evaluating the averaged weights (train.ema); training goes on with its own")
        return self._average.applied()

    def _judge(self, results: Mapping[str, float], iterations: int) -> None:
        """All ranks see the results of the first one, and decide the same."""
        if not self._goals.metrics:
            return
        results = comm.all_gather(dict(results))[0]
        best, stopping = self._goals.best, self._goals.stopping
        if best is not None and _is_default_and_missing(best, results):
            logger.error("NO %s.pth WRITTEN: %s", BEST, unknown_metric(best.setting, best.metric, list(results)))
            best = None
        values = {goal.setting: goal.read(results) for goal in (best, stopping) if goal is not None}
        if stopping is not None:
            stopping.update(values[stopping.setting], iterations)
        if best is not None and best.is_better(values[best.setting]):
            self._save_best(values[best.setting], iterations)

    def _save_best(self, value: float, iterations: int) -> None:
        """If it cannot be written, the former best stays: a disk that is full now may not be at the next evaluation."""
        best, error = self._goals.best, None
        entry = {"metric": best.metric, "mode": best.mode, "value": value, "iterations": iterations}
        try:
            self._checkpoints.checkpointer.save_weights(BEST, iteration=iterations - 1, best=entry)
        except CheckpointError as caught:
            error = str(caught)
        error = comm.all_gather(error)[0]
        if error is not None:
            logger.error("NO %s.pth WRITTEN, though %s is the best so far, %.4f: %s", BEST, best.metric, value, error)
            return
        before = "" if best.value is None else f" (before: {best})"
        logger.info("%s is the best so far, %.4f: written to %s.pth%s", best.metric, value, BEST, before)
        best.update(value, iterations)

    # ------------------------------------------------------------------------------------------------------- the record

    def _record(self, iterations: int) -> None:
        path = self._folder / LAST_EVALUATION
        content = {
            "iterations": iterations,
            "images": self._checkpoints.run_state.images(iterations),
            "results": self.results,
        }
        try:
            with writing_errors(path), written_whole(path) as temporary:
                temporary.write_text(json.dumps(content))
        except CheckpointError as error:
            logger.warning("%s. If the run is resumed before its next checkpoint, it evaluates once more", error)

    def _recorded(self, images: int) -> dict[str, Any] | None:
        """The results after so many images, if these are the last ones that were recorded; on all ranks."""
        recorded, found = self._read() if comm.is_main_process() else (None, None)
        found = comm.all_gather(found if recorded == images else None)[0]
        if found is not None:
            logger.info("The checkpoint was evaluated already, see %s", self._folder / LAST_EVALUATION)
        return found

    def _forget_later_than(self, images: int) -> None:
        """What was recorded of weights that this run never had."""
        if comm.is_main_process() and (self._read()[0] or 0) > images:
            (self._folder / LAST_EVALUATION).unlink(missing_ok=True)

    def _read(self) -> tuple[int | None, dict[str, Any] | None]:
        """(images, results)"""
        try:
            record = json.loads((self._folder / LAST_EVALUATION).read_text())
            return int(record["images"]), dict(record["results"])
        except (OSError, ValueError, LookupError, TypeError):
            return None, None  # there is none, or it is broken

    def state_dict(self) -> dict[str, Any]:
        best, stopping = self._goals.best, self._goals.stopping
        done = min(self.trainer.iter + 1, self.trainer.max_iter)
        is_due = self._period > 0 and done % self._period == 0
        return {
            "evaluation": asdict(_OfWeights(is_due=is_due, is_done=self._evaluated == done)),
            "best": best and best.state_dict(),
            "stopping": stopping and stopping.state_dict(),
            "ended": self._has_ended,
            "results": self.results if self._has_ended else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for goal, saved in ((self._goals.best, state["best"]), (self._goals.stopping, state["stopping"])):
            if goal is not None and saved is not None:
                goal.load_state_dict(saved)
        self._resumed, self._has_ended = _OfWeights(**state["evaluation"]), state["ended"]
        self.results = dict(state["results"]) if comm.is_main_process() else {}


def _plain(results: dict[str, Any]) -> dict[str, Any]:
    """Numbers of Python, also of evaluators that give those of numpy, which checkpoints must not hold."""
    return json.loads(json.dumps(results, default=float))


def _is_default_and_missing(best: BestValue, results: Mapping[str, float]) -> bool:
    """Nobody asked for it in so many words: no reason to end a run whose evaluator has metrics of its own."""
    return best.metric == DEFAULT_METRIC and best.metric not in results


def check_metrics(cfg: DictConfig, evaluation: Any) -> None:
    """Raises ValueError for a metric that evaluation will not give, where that can be told before.

    evaluation: ``functools.partial`` of ``evaluate_model``; of anything else nothing is known.
    """
    known = known_metrics(getattr(evaluation, "keywords", {}).get("evaluator"))
    goals = Goals.of(cfg)
    for goal in goals.metrics:
        if goal is goals.best and goal.metric == DEFAULT_METRIC:
            continue
        if known is not None and not known.has(goal.metric):
            raise unknown_metric(goal.setting, goal.metric, known.names)


def copies_of_weights(cfg: DictConfig) -> int:
    """How often a run writes its weights beside those of a checkpoint, for ``check_space``."""
    return sum(read_options(cfg, kind) is not None for kind in (EmaOptions, BestCheckpointOptions))
