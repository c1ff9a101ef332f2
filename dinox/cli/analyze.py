"""dinox analyze"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dinox.analysis import (
    AXIS_LABELS,
    DEFAULT_AXES,
    DEFAULT_METRICS,
    DETECTION_SIZE,
    ModelReport,
    PhaseTimes,
    Run,
    analyze_model,
    choose_metrics,
    draw_curves,
    is_evaluation,
    lower_is_better,
    read_runs,
    report_rows,
)
from dinox.cli.analyze_collaboration import add_collaboration_arguments, analyze_collaboration_command
from dinox.cli.analyze_matching import add_matching_arguments, analyze_matching_command
from dinox.cli.arguments import add_common_arguments, add_config_safety_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.config import load_config
from dinox.utils.json_files import write_json
from dinox.utils.tables import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{model,curves,matching,collaboration}")
    text = "parameters, GFLOPs, activation memory and times of a config's model, part by part"
    _add_model_arguments(kinds.add_parser("model", help=text, description=f"{text.capitalize()}."))
    text = "AP and losses of training runs against epochs and time, as a picture"
    _add_curves_arguments(kinds.add_parser("curves", help=text, description=f"{text}."))
    text = "how stable the matching of a run's checkpoints is, and how far anchors are from their objects"
    add_matching_arguments(kinds.add_parser("matching", help=text, description=f"{text.capitalize()}."))
    text = "how encoder, decoder and auxiliary heads see the objects of images (Co-DETR), in one or several models"
    add_collaboration_arguments(kinds.add_parser("collaboration", help=text, description=f"{text}."))


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a file, or a name in the model zoo")
    parser.add_argument("--config-file", metavar="CONFIG", help="the same, as other commands have it")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the config, such as model.num_queries=300"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=DETECTION_SIZE,
        metavar=("H", "W"),
        help="of the images (default: {} {}, where papers count)".format(*DETECTION_SIZE),
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images for memory and times (default: 1)"
    )
    parser.add_argument("--no-timing", action="store_true", help="measure no times, which takes longest")
    add_config_safety_arguments(parser)
    add_common_arguments(parser)


def _add_curves_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN_FOLDER", help="output folders of training runs")
    parser.add_argument("--output", default="curves.png", metavar="FILE", help="the picture (default: curves.png)")
    parser.add_argument(
        "--metric", nargs="+", metavar="NAME", help=f"names in metrics.json (default: {' '.join(DEFAULT_METRICS)})"
    )
    parser.add_argument(
        "--x", nargs="+", choices=AXIS_LABELS, default=DEFAULT_AXES, help=f"(default: {' '.join(DEFAULT_AXES)})"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs (default: their folders')")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    work = {
        "model": _model,
        "curves": _curves,
        "matching": analyze_matching_command,
        "collaboration": analyze_collaboration_command,
    }[args.kind]
    return guarded(lambda: work(args), debug=args.debug)


# ---------------------------------------------------------------------------------------------------------------- model


def _model(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    config, overrides = _config_and_overrides(args)
    report = analyze_model(
        load_config(config, overrides, allow_targets=args.allow_targets),
        size=tuple(args.size),
        batch_size=args.batch_size,
        timing=not args.no_timing,
    )
    print(_format_report(report, config))
    if args.json_file:
        what = {"command": "analyze model", "config_file": config, "overrides": overrides}
        write_json(args.json_file, what | dataclasses.asdict(report))


def _config_and_overrides(args: argparse.Namespace) -> tuple[str, list[str]]:
    if args.config_file is None:
        if args.config is None:
            raise ValueError("which config? Give a file, or a name in the model zoo such as dino/dino_r50_4scale_12ep")
        return args.config, args.overrides
    # With the option, the first of the other words is an override too.
    return args.config_file, [*([args.config] if args.config else []), *args.overrides]


def _format_report(report: ModelReport, config: str) -> str:
    height, width = report.size
    where = f"CPU ({report.threads} of its cores)" if report.device == "cpu" else report.device
    columns = _columns(report)
    rows = [[part, *(values.get(part, "") for values in columns.values())] for part in report_rows(report)]
    rows.append(["total", *(values.get("", "") for values in columns.values())])
    lines = [
        f"{config} on {_images(report.batch_size)} of {height} x {width} with {report.objects_per_image} objects each",
        f"{where}; detection in fp32, training in {report.precision}",
        "",
        format_table(["part", *columns], rows),
        "",
        "parameters     frozen ones have no gradient; training-only ones (of either kind) are never read in detection",
        "GFLOPs         of detection on one image; a multiply-add is one",
        "activations    what the forward pass of a training step keeps for the backward pass",
        *(_about("detection", report.detection, report.batch_size) if report.detection else []),
        *(_about("training", report.training, report.batch_size) if report.training else []),
        "",
        f"Next: dinox analyze model {config} --size 640 1024   # or settings, as model.num_classes=20",
    ]
    return "\n".join(lines)


def _columns(report: ModelReport) -> dict[str, dict[str, str]]:
    """Header -> part or phase -> cell; the whole is under ""."""
    counts = report.parameters
    activations = {**report.activations.parts, "": report.activations.total}
    columns = {
        "parameters\nM": _cells({part: count.total for part, count in counts.items()}, unit=1e6),
        "frozen\nM": _cells({part: count.frozen for part, count in counts.items()}, unit=1e6),
        "training\nonly, M": _cells({part: count.training_only for part, count in counts.items()}, unit=1e6),
        "\nGFLOPs": _cells(report.gflops),
        "activations\nMiB": _cells(activations, unit=2**20),
    }
    for name, times in (("detection", report.detection), ("training", report.training)):
        if times is not None:
            columns[f"{name}\nms"] = _cells({**times.seconds, "": times.total}, unit=1e-3)
    return columns


def _cells(values: Mapping[str, float], *, unit: float = 1) -> dict[str, str]:
    """Numbers that can be compared: as many decimals as the largest needs for four digits. Nothing is left empty."""
    largest = max(values.values()) / unit
    decimals = next((decimals for limit, decimals in ((1000, 0), (100, 1), (10, 2)) if largest >= limit), 3)
    return {name: f"{value / unit:,.{decimals}f}" for name, value in values.items() if value}


def _about(name: str, times: PhaseTimes, batch_size: int) -> list[str]:
    line = f"{name:<15}medians of {times.runs} runs; {batch_size / times.total:.3g} images per second"
    if times.peak_bytes is not None:
        line += f"; at most {times.peak_bytes / 2**30:.1f} GiB of tensors on the GPU"
    return [line]


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


# --------------------------------------------------------------------------------------------------------------- curves


def _curves(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    runs = read_runs(args.runs, args.names)
    draw_curves(runs, args.output, metrics=args.metric, axes=args.x)
    metrics = choose_metrics(runs, args.metric)
    print(_format_runs(runs, metrics, args.x))
    print(f"\npicture  {args.output}")
    if args.json_file:
        curves = [_curve_data(run, metrics, args.x) for run in runs]
        write_json(args.json_file, {"command": "analyze curves", "picture": args.output, "runs": curves})


def _format_runs(runs: Sequence[Run], metrics: Sequence[str], axes: Sequence[str]) -> str:
    """Where each run is, and its last and best values."""
    header = ["run", "iterations", *(AXIS_LABELS[axis].split()[0] for axis in axes if axis != "iterations")]
    for metric in metrics:
        header += [f"{metric}\nlast", f"{metric}\nbest"] if is_evaluation(metric) else [f"{metric}\nlast"]
    rows = []
    for run in runs:
        end = np.array([max(series.iterations[-1] for series in run.metrics.values())])
        row = [run.name, f"{end[0]:,}", *(f"{run.along(axis, end)[0]:.3g}" for axis in axes if axis != "iterations")]
        for metric in metrics:
            values = run.metrics[metric].values if metric in run.metrics else None
            row.append("-" if values is None else f"{values[-1]:.4g}")
            if is_evaluation(metric):
                best = np.min if lower_is_better(metric) else np.max
                row.append("-" if values is None else f"{best(values):.4g}")
        rows.append(row)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    return "\n".join([format_table(header, rows), *([""] if notes else []), *notes])


def _curve_data(run: Run, metrics: Sequence[str], axes: Sequence[str]) -> dict:
    curves = {}
    for metric in metrics:
        if metric in run.metrics:
            series = run.metrics[metric]
            places = {axis: run.along(axis, series.iterations).tolist() for axis in ("iterations", *axes)}
            curves[metric] = places | {"values": series.values.tolist()}
    return {"name": run.name, "folder": str(run.folder), "notes": list(run.notes), "curves": curves}
