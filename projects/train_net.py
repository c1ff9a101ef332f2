#!/usr/bin/env python3
"""Train or evaluate any config, as detectron2 users expect it. ``dinox train`` and ``dinox eval`` do the same.

projects/train_net.py --config-file FILE [--eval-only] [--resume] [--deterministic] [--num-gpus N] [--json FILE]
    [key=value ...]
torchrun --nproc_per_node N projects/train_net.py --config-file FILE ...    (or srun: no --num-gpus needed)
"""

import sys
from collections.abc import Sequence

from dinox.cli.arguments import (
    add_common_arguments,
    add_config_safety_arguments,
    add_determinism_argument,
    run_options,
)
from dinox.cli.running import start

# isort: split
# After dinox, which says how to install detectron2 where it is missing.
from detectron2.engine import default_argument_parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = default_argument_parser(epilog=__doc__)
    add_determinism_argument(parser)
    add_config_safety_arguments(parser)
    add_common_arguments(parser)
    parser.set_defaults(dist_url="auto")  # any free port, instead of one per user
    args = parser.parse_args(argv)
    args.overrides = args.opts
    return start(run_options(args, eval_only=args.eval_only))


if __name__ == "__main__":
    sys.exit(main())
