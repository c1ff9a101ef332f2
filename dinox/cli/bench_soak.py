"""dinox bench soak"""

import argparse
from dataclasses import asdict

from dinox.analysis.soak import MemorySample, SoakReport, soak
from dinox.cli.arguments import add_common_arguments, split_overrides
from dinox.cli.running import check_json_target
from dinox.utils.json_files import write_json
from dinox.utils.tables import format_table

SOAK = "train for some hundred steps and tell by how much memory grows"

_CONFIG = "dino/dino_demo"
_GROWING = 1  # exit code
_LINES = 15  # of progress


def add_soak_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG",
        help=f"a file or a name in the model zoo (default: {_CONFIG}), and key=value for it",
    )
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="(default: 300)")
    parser.add_argument(
        "--from-step", type=int, default=100, metavar="N", help="before it nothing counts: caches fill (default: 100)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="that load images (default: 2)")
    parser.add_argument(
        "--limit", type=float, default=1.0, metavar="MB", help="per 100 steps; above it, exit code 1 (default: 1)"
    )
    add_common_arguments(parser)


def bench_soak(args: argparse.Namespace) -> int:
    check_json_target(args.json_file)
    configs, overrides = split_overrides(args.overrides)
    if len(configs) > 1:
        raise ValueError(f"one config at a time, got {', '.join(configs)}")
    if args.workers < 0:
        raise ValueError(f"--workers: expected at least 0, got {args.workers}")
    config = configs[0] if configs else _CONFIG
    print(f"{config}: {args.steps} steps of training with {args.workers} workers", flush=True)
    every = max(1, args.steps // _LINES)
    report = soak(
        config,
        overrides,
        steps=args.steps,
        from_step=args.from_step,
        workers=args.workers,
        on_sample=lambda sample: _print_progress(sample) if sample.step % every == 0 else None,
    )
    growth, limit = report.slopes()["total"].value, args.limit * 1e6
    print(f"\n{_format(report)}\n")
    verdict = "below" if growth < limit else "NOT BELOW"
    print(f"Least squares over steps {report.counted[0].step} to {report.counted[-1].step}: the total's growth is")
    print(f"{verdict} {args.limit:g} MB per 100 steps.")
    print("resident: what processes share counts in each. own total: it counts once, and files that are mapped do not.")
    if args.json_file:
        slopes = {name: asdict(slope) for name, slope in report.slopes().items()}
        slopes = {"bytes_per_100_steps": slopes, "limit": limit}
        write_json(args.json_file, {"command": "bench soak"} | asdict(report) | slopes)
    return 0 if growth < limit else _GROWING


def _print_progress(sample: MemorySample) -> None:
    print(f"step {sample.step}: {sum(sample.resident.values()) / 1e6:,.1f} MB resident", flush=True)


def _format(report: SoakReport) -> str:
    first, last = report.counted[0], report.counted[-1]
    ends = [sample.with_totals() for sample in (first, last)]
    rows = [
        [name, *(f"{end.get(name, 0) / 1e6:,.1f}" for end in ends)]
        + [f"{slope.value / 1e6:+.2f}", f"{slope.error / 1e6:.2f}"]
        for name, slope in report.slopes().items()
    ]
    header = ["resident", f"step {first.step}\nMB", f"step {last.step}\nMB", "growth\nMB/100 steps", "standard\nerror"]
    return format_table(header, rows)
