"""dinox bench step, infer and matching"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict

import torch

from dinox.analysis.complexity import DETECTION_SIZE
from dinox.analysis.inputs import OBJECTS_PER_IMAGE
from dinox.analysis.speed import (
    MatchingMilliseconds,
    SpeedRow,
    Workload,
    benchmark_matching,
    measure_speed_apart,
    phase_columns,
)
from dinox.cli.arguments import add_common_arguments, add_config_safety_arguments, split_overrides
from dinox.cli.running import check_json_target
from dinox.utils.json_files import write_json
from dinox.utils.tables import format_table

TASKS = {
    "step": "time training steps of configs beside each other, phase by phase, with their peak of memory",
    "infer": "time detection of configs beside each other, phase by phase, with its peak of memory",
}
MATCHING = "time the matcher beside a loop over decoder layers and images"


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="+", metavar="CONFIG", help="files or names in the model zoo, and key=value for all of them"
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        default=[""],
        metavar="'key=value ...'",
        help="sets of overrides, each a row for every config; '' is none",
    )
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="of images of noise (default: 800 1333)")
    parser.add_argument("--objects", type=int, metavar="N", help=f"on each of these (default: {OBJECTS_PER_IMAGE})")
    parser.add_argument("--batch", type=int, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--data", action="store_true", help="the config's own dataset and batches, not noise")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: fp32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: torch's")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="that count (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="steps before them (default: 2)")
    add_config_safety_arguments(parser)
    add_common_arguments(parser)


def add_matching_speed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prediction-sets", type=int, default=7, metavar="N", help="layers and encoder (default: 7)")
    parser.add_argument("--images", type=int, default=2, metavar="N", help="(default: 2)")
    parser.add_argument("--objects", type=int, default=50, metavar="N", help="of every image (default: 50)")
    parser.add_argument("--queries", type=int, default=900, metavar="N", help="(default: 900)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="the fastest counts (default: 20)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: torch's")
    add_common_arguments(parser)


# --------------------------------------------------------------------------------------------------------- step, infer


def bench_speed(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    configs, shared = split_overrides(args.overrides)
    if not configs:
        raise ValueError("which config? Give a file, or a name in the model zoo such as dino/dino_r50_4scale_12ep")
    workload = _workload(args)
    rows = []
    for config in configs:
        for own in args.sets:
            overrides = [*shared, *shlex.split(own)]
            rows.append(measure_speed_apart(config, overrides, workload, allow_targets=args.allow_targets))
    print(_format_rows(rows, workload, shared))
    if args.json_file:
        data = [asdict(row) | {"columns": phase_columns(row.phases)} for row in rows]
        of_noise_only = {"batch_size": None, "objects": None} if args.data else {}
        header = {"command": f"bench {args.benchmark}", **asdict(workload), **of_noise_only}
        write_json(args.json_file, header | {"rows": data})


def _workload(args: argparse.Namespace) -> Workload:
    of_noise = {"size": tuple(args.size or DETECTION_SIZE), "batch_size": args.batch, "objects": args.objects}
    if args.data:
        given = [option for option in ("size", "batch", "objects") if getattr(args, option) is not None]
        if given:
            raise ValueError(f"--{given[0]} is for images of noise: leave it or --data out")
        of_noise = {"size": None}
    return Workload(
        task=args.benchmark,
        dtype=args.dtype,
        threads=args.threads,
        device=resolve_bench_device(args.device),
        steps=args.steps,
        warmup=args.warmup,
        **{name: value for name, value in of_noise.items() if value is not None or name == "size"},
    )


def resolve_bench_device(wanted: str | None) -> str:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError(f"--device cuda: torch {torch.__version__} finds no CUDA device here; --device cpu measures")
    return wanted or ("cuda" if available else "cpu")


def _format_rows(rows: Sequence[SpeedRow], workload: Workload, shared: Sequence[str]) -> str:
    columns = [phase_columns(row.phases) for row in rows]
    phases = [name for name in dict.fromkeys(name for each in columns for name in each) if name != "other"]
    header = [
        "",
        "images/s",
        "steps/s",
        "ratio",
        "step\nms",
        *(f"{name}\nms" for name in [*phases, "other"]),
        "peak\nMB",
    ]
    table = [
        [
            _row_name(row, rows, shared),
            f"{row.images_per_second:.3g}",
            f"{row.steps_per_second:.3g}",
            f"{rows[0].seconds / row.seconds:.2f}x",
            *(
                f"{1000 * seconds:.0f}"
                for seconds in (row.seconds, *(each.get(name, 0) for name in [*phases, "other"]))
            ),
            f"{row.peak_bytes / 1e6:,.0f}",
        ]
        for row, each in zip(rows, columns, strict=True)
    ]
    where = torch.cuda.get_device_name() if workload.device == "cuda" else f"CPU, {rows[0].threads} threads"
    what = "training steps" if workload.task == "step" else "detection"
    images = "the config's data"
    if workload.size is not None:
        height, width = workload.size
        images = f"batches of {workload.batch_size} at {height} x {width}, {workload.objects} objects each"
    return "\n".join(
        [
            f"{what} in {workload.dtype}, {images}; {where}",
            *([f"all with {' '.join(shared)}"] if shared else []),
            "",
            format_table(header, table),
            "",
            f"Medians of {workload.steps} steps, {workload.warmup} to warm up. ratio: of speed, to the first row.",
            "backbone: with neck. encoder: with positions. queries: selection and groups. decoder: with heads.",
            "peak: on the CPU the process's resident memory, on a GPU that of tensors.",
        ]
    )


def _row_name(row: SpeedRow, rows: Sequence[SpeedRow], shared: Sequence[str]) -> str:
    """What tells the row from the others."""
    own = " ".join(row.overrides[len(shared) :])
    if len({each.config for each in rows}) == 1 and len(rows) > 1:
        return own or "as it is"
    return f"{row.config} {own}".strip()


# ------------------------------------------------------------------------------------------------------------- matching


def bench_matching(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    numbers = {name: getattr(args, name) for name in ("prediction_sets", "images", "objects", "queries", "rounds")}
    for name, value in {**numbers, "threads": 1 if args.threads is None else args.threads}.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = resolve_bench_device(args.device)
    results = [benchmark_matching(**numbers, correlated=correlated, device=device) for correlated in (True, False)]
    rows = []
    for result in results:
        same = "yes" if result.same_indices else "NO"
        costs = "correlated" if result.correlated else "random"
        rows += [
            [costs, "loop", *_matching_columns(result.loop), "", "", ""],
            ["", "matcher", *_matching_columns(result.matcher)]
            + [f"{result.speedup:.1f}x", f"{result.solving_speedup:.1f}x", same],
        ]
    header = ["", "", "costs\nms", "solving\nms", "both\nms", "speed-up", "of solving", "same\nindices"]
    print("{prediction_sets} x {images} matrices of {queries} queries x {objects} objects".format(**numbers))
    print()
    print(format_table(header, rows))
    print()
    print(f"Each the fastest of {args.rounds} rounds in turns; {device}, {torch.get_num_threads()} threads.")
    print("loop: as in DETR, DINO and detrex: layer by layer, costs of the queries of all images for all objects,")
    print("then scipy image by image. costs: with their copy to the host.")
    print("correlated: all objects want the same queries, as detectors' costs are.")
    if args.json_file:
        data = [
            asdict(result) | {"speedup": result.speedup, "solving_speedup": result.solving_speedup}
            for result in results
        ]
        write_json(args.json_file, {"command": "bench matching", "results": data})


def _matching_columns(milliseconds: MatchingMilliseconds) -> list[str]:
    return [f"{each:.1f}" for each in (milliseconds.costs, milliseconds.solving, milliseconds.total)]
