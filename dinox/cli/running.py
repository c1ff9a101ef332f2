"""What all commands share: error messages, exit codes, results as json."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from dinox.checkpoint import CheckpointError
from dinox.cli.tta import TTAOptions
from dinox.config import ConfigError, load_config
from dinox.config.calls import innermost_evaluator, parameters
from dinox.data import DataError
from dinox.engine import evaluate, train
from dinox.engine.launching import check_launch, launch
from dinox.engine.stopping import TrainingStopped
from dinox.utils.json_files import write_json

DEBUG_VARIABLE = "DINOX_DEBUG"
USER_ERROR = 2
INTERRUPTED = 130

EXPECTED_ERRORS = (ValueError, OSError, FloatingPointError)
"""What dinox raises for mistakes in configs, data, checkpoints and paths, and for training that diverges."""


def guarded(work: Callable[[], int | None], *, debug: bool = False) -> int:
    """Do the work and return the exit code. An error that a user can mend becomes one line on stderr.

    Training that SIGTERM or Ctrl-C stopped gives 143 or 130, with a checkpoint; Ctrl-C in other work 130.

    All others keep their traceback, and with ``debug`` or the environment variable DINOX_DEBUG every error does.
    """
    _print_any_file_name()
    try:
        return work() or 0
    except TrainingStopped as stopped:
        print(f"dinox: {stopped.message}", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("dinox: interrupted", file=sys.stderr)
        return INTERRUPTED
    except EXPECTED_ERRORS as error:
        if debug or os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"dinox: error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR


def _print_any_file_name() -> None:
    """Names of files need not be text in the terminal's encoding: what cannot be printed is escaped, as on stderr."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # what a test or a notebook puts there may have none
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    # An error of a library may be anything; ours explain themselves.
    return text if _is_ours(error) else f"{text} ({type(error).__name__}; --debug shows where)"


def _is_ours(error: BaseException) -> bool:
    """Our own classes (those from a loader's worker are raised by torch), and what our code raises."""
    if isinstance(error, (ConfigError, DataError, CheckpointError)):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "dinox"


def check_json_target(path: str | None, *, option: str = "--json") -> None:
    """Hours of work should not end with a folder that does not exist. Raises ValueError."""
    if path is None:
        return
    folder = Path(path).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path}: expected a file in an existing folder that can be written, got {folder}")
    if Path(path).is_dir():
        raise ValueError(f"{option} {path}: expected a file, this is a folder")


@dataclass(frozen=True)
class RunOptions:
    """One training or evaluation as the command line describes it; goes to every process."""

    config_file: str
    overrides: tuple[str, ...] = ()
    allow_targets: tuple[str, ...] = ()
    eval_only: bool = False
    resume: bool = False
    deterministic: bool = False
    json_file: str | None = None
    report_dir: str | None = None
    tta: TTAOptions = field(default_factory=TTAOptions)
    debug: bool = False
    num_gpus: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"


def start(options: RunOptions) -> int:
    """Train or evaluate, in one process or several; returns the exit code."""
    return guarded(lambda: _launch(options), debug=options.debug)


def _launch(options: RunOptions) -> int:
    if not options.config_file:
        raise ValueError(
            "--config-file is missing: give a file, or a name in the model zoo such as dino/dino_r50_4scale_12ep"
        )
    flags = [text for text in options.overrides if text.startswith("-")]
    if flags:
        raise ValueError(f"expected key=value, got {flags[0]!r}: options come before the first override")
    check_json_target(options.json_file)
    options.tta.wrapper()
    check_launch(
        num_gpus=options.num_gpus,
        num_machines=options.num_machines,
        machine_rank=options.machine_rank,
        dist_url=options.dist_url,
    )
    cfg = _load_config(options)  # mistakes show before processes are started
    if options.num_gpus * options.num_machines <= 1:
        _train_or_evaluate(options, cfg)
        return 0
    return launch(
        _run_rank,
        options,
        num_gpus=options.num_gpus,
        num_machines=options.num_machines,
        machine_rank=options.machine_rank,
        dist_url=options.dist_url,
    )


def _run_rank(options: RunOptions) -> int:
    """One process of several. It is a fresh one, in which the config's code has not run yet."""

    def work() -> None:
        _train_or_evaluate(options, _load_config(options))

    return guarded(work, debug=options.debug)


def _load_config(options: RunOptions) -> DictConfig:
    cfg = load_config(options.config_file, options.overrides, allow_targets=options.allow_targets)
    if options.report_dir is not None:
        _ask_for_report(cfg, options.report_dir)
    if options.deterministic:
        OmegaConf.update(cfg, "train.deterministic", True, force_add=True)
    return cfg


def _ask_for_report(cfg: DictConfig, folder: str) -> None:
    node = innermost_evaluator(cfg) if OmegaConf.select(cfg, "dataloader.evaluator") is not None else None
    if "report_dir" not in (parameters(node) or {}):
        raise ValueError(
            f"--report {folder}: the config's dataloader.evaluator writes none: expected dinox.evaluation.CocoEvaluator"
        )
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"--report {folder}: expected a folder, this is a file")
    node.report_dir = folder


def _train_or_evaluate(options: RunOptions, cfg: DictConfig) -> None:
    device = _requested_device(options, cfg)
    if options.eval_only:
        results = evaluate(cfg, resume=options.resume, device=device, wrapper=options.tta.wrapper())
    else:
        results = train(cfg, resume=options.resume, device=device)
    if options.json_file and comm.is_main_process():
        write_json(options.json_file, _description(options, cfg) | {"results": results})


def _requested_device(options: RunOptions, cfg: DictConfig) -> str | None:
    """The device that the command line names, which has to be there; the config's need not."""
    named = any(override.startswith("train.device=") for override in options.overrides)
    if options.num_gpus == 0:
        if named and cfg.train.device != "cpu":
            raise ValueError(
                f"--num-gpus 0 asks for the CPU, but train.device={cfg.train.device}: leave out one of them"
            )
        return "cpu"
    return cfg.train.device if named else None


def _description(options: RunOptions, cfg: DictConfig) -> dict[str, Any]:
    return {
        "command": "eval" if options.eval_only else "train",
        "config_file": options.config_file,
        "overrides": list(options.overrides),
        "output_dir": cfg.train.output_dir,
        **({} if options.tta.scales is None else {"tta": asdict(options.tta)}),
    }
