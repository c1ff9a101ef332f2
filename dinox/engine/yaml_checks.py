"""What ``DinoxTrainer`` refuses before it builds anything: settings of ``train`` that would have no effect there."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinox.engine.evaluations import Goals, check_metrics
from dinox.engine.options import DEFAULT_METRIC
from dinox.engine.parallel import SETTING as PARALLEL
from dinox.engine.process_group import DEFAULT_TIMEOUT, timeout_of
from dinox.evaluation import evaluate_model

_METRICS = ("train.best_checkpoint.metric", "train.early_stopping.metric")


def check_processes(cfg: DictConfig) -> None:
    """Raises ValueError for what somebody else decides there: the script that starts the processes."""
    if timeout_of(cfg) != DEFAULT_TIMEOUT:
        raise ValueError(
            f"train.timeout={cfg.train.timeout}: has no effect on DinoxTrainer, whose processes detectron2's launch "
            "starts. Leave it out, and give launch(timeout=timedelta(seconds=...))"
        )
    kind = OmegaConf.select(cfg, PARALLEL)
    if kind not in (None, "ddp"):
        raise ValueError(
            f"{PARALLEL}: expected ddp, the only one that DinoxTrainer knows, got {kind!r}. Leave it out, or train "
            "the LazyConfig (`dinox train`), which has fsdp too"
        )


def check_goals(cfg: DictConfig, datasets: Sequence[str], build_evaluator: Callable[[str], Any]) -> None:
    """Raises ValueError for a metric that the evaluators will not give, where that can be told.

    datasets: to be tested on; if there are several, metrics may begin with the name of one of them.
    """
    goals = Goals.of(cfg)
    if not datasets or all(goal is goals.best and goal.metric == DEFAULT_METRIC for goal in goals.metrics):
        return
    if len(datasets) > 1:
        cfg = cfg.copy()
        for key in _METRICS:
            metric = OmegaConf.select(cfg, key)
            prefix = next((f"{name}/" for name in datasets if str(metric).startswith(f"{name}/")), "")
            if prefix:
                OmegaConf.update(cfg, key, metric.removeprefix(prefix))
    check_metrics(cfg, partial(evaluate_model, evaluator=build_evaluator(datasets[0])))
