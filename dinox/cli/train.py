"""dinox train"""

import argparse

from dinox.cli.arguments import add_determinism_argument, add_run_arguments, run_options
from dinox.cli.running import start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in train.output_dir")
    add_determinism_argument(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return start(run_options(args, eval_only=False))
