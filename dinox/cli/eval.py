"""dinox eval"""

import argparse

from dinox.cli.arguments import add_determinism_argument, add_run_arguments, run_options
from dinox.cli.running import start
from dinox.cli.tta import add_tta_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="evaluate the last checkpoint in train.output_dir")
    parser.add_argument(
        "--report",
        metavar="FOLDER",
        help="write per-class AP, precision and recall, best F1 scores and duplicates there, as json and pictures",
    )
    add_determinism_argument(parser)
    add_tta_arguments(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return start(run_options(args, eval_only=True))
