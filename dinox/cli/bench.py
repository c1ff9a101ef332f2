"""dinox bench"""

import argparse
from dataclasses import asdict

import torch

from dinox.analysis.operators import CASES, Measurement, OperatorReport, benchmark_operator
from dinox.cli.arguments import add_common_arguments
from dinox.cli.bench_soak import SOAK, add_soak_arguments, bench_soak
from dinox.cli.bench_speed import (
    MATCHING,
    TASKS,
    add_matching_speed_arguments,
    add_speed_arguments,
    bench_matching,
    bench_speed,
)
from dinox.cli.running import check_json_target, guarded
from dinox.ops import why_reference
from dinox.utils.json_files import write_json

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_CASES, _GPU_CASES = ("E4", "E480", "D900"), ("E4b2", "E5", "D1100")
_ROUNDS = {"cpu": 9, "cuda": 100}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    text = "time the deformable-attention operator beside other implementations of it"
    op = benchmarks.add_parser("op", help=text, description=f"{text[0].upper()}{text[1:]}.")
    op.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    op.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    op.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    op.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=["fp32", "bf16"], help="of values")
    op.add_argument("--uniform", action="store_true", help="also locations anywhere in the image, not near the queries")
    op.add_argument("--rounds", type=int, metavar="N", help="runs of each; default: 9 on the CPU, 100 on a GPU")
    add_common_arguments(op)
    for task, text in TASKS.items():
        add_speed_arguments(benchmarks.add_parser(task, help=text, description=f"{text[0].upper()}{text[1:]}."))
    text = f"{MATCHING[0].upper()}{MATCHING[1:]}."
    add_matching_speed_arguments(benchmarks.add_parser("matching", help=MATCHING, description=text))
    add_soak_arguments(benchmarks.add_parser("soak", help=SOAK, description=f"{SOAK[0].upper()}{SOAK[1:]}."))


def run(args: argparse.Namespace) -> int:
    work = {"op": _bench_op, "matching": bench_matching, "soak": bench_soak}.get(args.benchmark, bench_speed)
    return guarded(lambda: work(args), debug=args.debug)


def _bench_op(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device here. On a GPU this measures "
            f"{', '.join(_GPU_CASES)} in fp32 and bf16, cold and warm, decoders as CUDA graphs too; --device cpu "
            "measures here"
        )
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads: expected a number above 0, got {args.threads}")
        torch.set_num_threads(args.threads)
    reason = why_reference(device)
    if reason:
        print(f"note: dinox runs its PyTorch reference on {device}: {reason}\n")
    cases = args.cases or (_GPU_CASES if device == "cuda" else _CPU_CASES)
    print(_heading(device), flush=True)
    report = benchmark_operator(
        cases,
        device=device,
        dtypes=[_DTYPES[name] for name in args.dtypes],
        near=(True, False) if args.uniform else (True,),
        rounds=args.rounds or _ROUNDS[device],
        on_measurement=lambda measurement: print(_row(measurement), flush=True),
    )
    print(_footer(report))
    if args.json_file:
        write_json(args.json_file, {"command": "bench op"} | asdict(report))


def _heading(device: str) -> str:
    columns = f"{'case':6} {'where':8} {'value':9} {'phase':22} {'cache':6} {'implementation':34}"
    numbers = f"{'median ms':>10} {'min ms':>9} {'GB/s':>8} {'bound':>7}" + (f" {'MB':>7}" if device == "cuda" else "")
    return f"{columns} {numbers} {'speed-up':>9} {'over fp32':>9}"


def _row(m: Measurement) -> str:
    columns = f"{m.case:6} {m.locations:8} {m.dtype:9} {m.phase:22} {m.cache:6} {m.contender:34}"
    numbers = f"{m.median_ms:10.3f} {m.min_ms:9.3f} {m.gathered_gb_s:8.1f} {m.bound_share:6.0%} "
    peak = "" if m.peak_mb is None else f" {m.peak_mb:7.0f}"
    return f"{columns} {numbers}{peak} {_ratio(m.speedup, 1):>9} {_ratio(m.speedup_over_own_float32, 2):>9}"


def _ratio(ratio: float | None, digits: int) -> str:
    return "-" if ratio is None else f"{ratio:.{digits}f}x"


def _footer(report: OperatorReport) -> str:
    lines = [
        "",
        f"{report.device}, {report.threads} threads; a copy moves {report.copy_gb_s:.1f} GB/s (read and written)",
        "GB/s: value rows gathered. bound: time to move the unavoidable bytes once, over the minimum.",
        "speed-up: of the minima, over grid_sample (float32) in the same run.",
        "over fp32: likewise, over the same implementation with float32 values.",
    ]
    lines += [f"not installed: {name} ({reason})" for name, reason in report.missing.items()]
    lines += [f"NOT MEASURED, wrong numbers: {name}: {reason}" for name, reason in report.refused.items()]
    return "\n".join(lines)
