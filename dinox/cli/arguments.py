"""Arguments that several commands take."""

import argparse
import re
from pathlib import Path

from dinox.cli.running import RunOptions
from dinox.cli.tta import TTAOptions

_OVERRIDE = re.compile(r"[A-Za-z_][\w.\[\]]*=")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", dest="json_file", help="write the results to FILE as json")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also: DINOX_DEBUG=1)")


def add_determinism_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="repeat runs bit for bit on the CPU (sets train.deterministic; the log says what does not on a GPU)",
    )


def add_config_safety_arguments(parser: argparse.ArgumentParser) -> None:
    """For commands that load configs, from files or from checkpoints: gives ``args.allow_targets``, a list."""
    parser.add_argument(
        "--allow-target",
        action="append",
        default=[],
        dest="allow_targets",
        metavar="PKG",
        help="a package that a yaml config, or the one in a checkpoint, may call as well; can be repeated",
    )


def add_ema_argument(parser: argparse.ArgumentParser) -> None:
    """For commands that load checkpoints: gives ``args.ema``. Training and evaluation have train.use_ema_weights."""
    parser.add_argument(
        "--no-ema",
        action="store_false",
        dest="ema",
        help="of a checkpoint that holds averaged weights (train.ema) too, take those of the last step",
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """What commands take that read checkpoints, beside which of them."""
    add_ema_argument(parser)
    add_config_safety_arguments(parser)
    add_common_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of detectron2's training scripts, which see."""
    parser.add_argument("--config-file", required=True, metavar="CONFIG", help="a file, or a name in the model zoo")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs on this machine, a process for each; 0, or without any: the CPU. Processes that torchrun or srun "
        "starts need no number",
    )
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="so many start this command, without torchrun or srun"
    )
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="where the first machine listens: tcp://host:port"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the config, such as optimizer.lr=5e-5"
    )
    add_config_safety_arguments(parser)
    add_common_arguments(parser)


def run_options(args: argparse.Namespace, *, eval_only: bool) -> RunOptions:
    return RunOptions(
        config_file=args.config_file,
        overrides=tuple(args.overrides),
        allow_targets=tuple(args.allow_targets),
        eval_only=eval_only,
        resume=args.resume,
        deterministic=args.deterministic,
        json_file=args.json_file,
        report_dir=getattr(args, "report", None),  # of evaluation only, as the next
        tta=TTAOptions.of(args),
        debug=args.debug,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )


def split_overrides(texts: list[str]) -> tuple[list[str], list[str]]:
    """(inputs, key=value texts) of what stands on the command line; a file that exists is an input."""
    overrides = [text for text in texts if _OVERRIDE.match(text) and not Path(text).exists()]
    return [text for text in texts if text not in overrides], overrides
