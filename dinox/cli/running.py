"""What all commands share: error messages, exit codes, results as json."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from dinox.checkpoint import CheckpointError
from dinox.cli.tta import TTAOptions
from dinox.config import ConfigError, load_config, setting_place
from dinox.config.calls import innermost_evaluator, parameters
from dinox.data import DataError
from dinox.engine import evaluate, train
from dinox.engine.launching import ProcessFailed, check_launch, launch
from dinox.engine.peers import Failure, Peers, is_lost_connection, tell_torchrun
from dinox.engine.places import Place, check_no_contradiction, find_place
from dinox.engine.process_group import joined, timeout_of
from dinox.engine.settings import SettingError
from dinox.engine.stopping import EXIT_CODES, Terminated, TrainingStopped, terminable
from dinox.utils.json_files import write_json

DEBUG_VARIABLE = "DINOX_DEBUG"
UNEXPECTED_ERROR = 1
USER_ERROR = 2
INTERRUPTED, TERMINATED = EXIT_CODES

EXPECTED_ERRORS = (ValueError, OSError, FloatingPointError)
"""What dinox raises for mistakes in configs, data, checkpoints and paths, and for training that diverges."""


def guarded(work: Callable[[], int | None], *, debug: bool = False, peers: Peers | None = None) -> int:
    """Do the work and return the exit code. An error that a user can mend becomes one line on stderr.

    Training that SIGTERM or Ctrl-C stopped gives 143 or 130, with a checkpoint; other work the same, without one.

    All others keep their traceback, and with ``debug`` or the environment variable DINOX_DEBUG every error does.

    ``peers``: of one of several processes. They are told of errors, and where an error comes of losing another process,
    the line says what happened to that one.
    """
    _print_any_file_name()
    try:
        return work() or 0
    except TrainingStopped as stopped:
        if peers is None or peers.rank == 0:
            print(f"dinox: {stopped.message}", file=sys.stderr)
        return stopped.code
    except Terminated:
        print("dinox: terminated", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt as error:
        if peers is not None:
            peers.first_failure(error, "interrupted", code=INTERRUPTED)
        print("dinox: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ProcessFailed as failed:
        print(f"dinox: error: {failed}", file=sys.stderr)
        return failed.code
    except Exception as error:
        is_expected = isinstance(error, EXPECTED_ERRORS)
        debug = debug or bool(os.environ.get(DEBUG_VARIABLE))
        if peers is not None:
            return _end_of_rank(error, peers, code=USER_ERROR if is_expected else UNEXPECTED_ERROR, debug=debug)
        if debug or not is_expected:
            raise
        tell_torchrun(_one_line(error), USER_ERROR)
        print(f"dinox: error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR


def _end_of_rank(error: Exception, peers: Peers, *, code: int, debug: bool) -> int:
    """Tell the other processes, and print an error, with its traceback unless it explains itself. Returns the code."""
    first = peers.first_failure(error, _one_line(error), code=code)
    if debug or not (code == USER_ERROR or is_lost_connection(error)):
        traceback.print_exc()
    for line in _lines(error, first, peers):
        print(f"dinox: {line}", file=sys.stderr)
    return code


def _lines(error: Exception, first: Failure, peers: Peers) -> list[str]:
    """What to print of an error, the first failure of all processes last. Errors that all of them have come once."""
    own = _one_line(error)
    if first.rank == peers.rank:
        return [f"error: {first}"]
    if is_lost_connection(error):
        return [f"rank {peers.rank} ends, since another one failed. {first}"]
    return [] if own == first.message else [f"error: rank {peers.rank}: {own}", f"the first failure was {first}"]


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
    place = find_place()
    launching = {
        "num_gpus": options.num_gpus,
        "num_machines": options.num_machines,
        "machine_rank": options.machine_rank,
        "dist_url": options.dist_url,
    }
    if place is not None:
        check_no_contradiction(place, **launching)
        return _run_rank(options, place)
    check_launch(**launching)
    with terminable():
        cfg = _load_config(options)  # mistakes show before processes are started
        timeout = timeout_of(cfg)
        if options.num_gpus * options.num_machines <= 1:
            _train_or_evaluate(options, cfg)
            return 0
    return launch(
        _run_launched,
        options,
        num_processes=options.num_gpus,
        num_machines=options.num_machines,
        machine_rank=options.machine_rank,
        dist_url=options.dist_url,
        timeout=timeout,
    )


def _run_launched(options: RunOptions) -> int:
    """One process of several. It is a fresh one, in which the config's code has not run yet."""
    return guarded(lambda: _run_rank(options, find_place()), debug=options.debug)


def _run_rank(options: RunOptions, place: Place) -> int:
    """What goes wrong before the processes have found each other shows on each of them."""
    cfg = _load_config(options)
    with joined(place, device_type=_device_type(options, cfg), timeout=timeout_of(cfg)) as peers:
        code = guarded(lambda: _train_or_evaluate(options, cfg), debug=options.debug, peers=peers)
        if peers.failed:
            _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """After an error of one of several processes: tidying up would wait for the others."""
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _device_type(options: RunOptions, cfg: DictConfig) -> str:
    """What the processes have in common before they are a group; ``_requested_device`` says the rest."""
    on_cpu = options.num_gpus == 0 or cfg.train.device == "cpu" or not torch.cuda.is_available()
    return "cpu" if on_cpu else "cuda"


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
    try:
        if options.eval_only:
            results = evaluate(cfg, resume=options.resume, device=device, wrapper=options.tta.wrapper())
        else:
            results = train(cfg, resume=options.resume, device=device)
    except SettingError as error:
        raise ConfigError(f"{_place(options, error.key)}: {error}") from error
    if options.json_file and comm.is_main_process():
        write_json(options.json_file, _description(options, cfg) | {"results": results})


def _place(options: RunOptions, key: str) -> str:
    """Where a setting was made: the override, or file and line."""
    for text in reversed(options.overrides):
        overridden = text.partition("=")[0]
        if f"{key}.".startswith(f"{overridden}."):
            return f"{options.config_file}: override '{text}'"
    return setting_place(options.config_file, key)


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
