"""dinox export"""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dinox.cli.arguments import add_checkpoint_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.export import (
    Case,
    Comparison,
    ExportReport,
    ExportSettings,
    ParityError,
    export_onnx,
    export_program,
)
from dinox.export.exporting import check_target
from dinox.export.parity import TOLERANCE
from dinox.export.settings import DEFAULT_OPSET, SAMPLERS, check_opset
from dinox.export.wrapper import fill_zeros
from dinox.inference.detector import load_detector
from dinox.utils.json_files import write_json

ENDINGS = (".onnx", ".pt2")

_DIFFERENT = 1
_SEED = 0  # of random weights
_BATCHES = (1, 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the file to write: a name in .onnx, or in .pt2 (torch.export)")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--weights", metavar="FILE", help="a checkpoint")
    weights.add_argument(
        "--random-weights", action="store_true", help="export the model as initialised, to try or to time it"
    )
    parser.add_argument(
        "--config-file", metavar="CONFIG", help="a file, or a name in the model zoo; default: the one in the checkpoint"
    )
    places = ("inside", "outside")
    parser.add_argument(
        "--preprocessing",
        choices=places,
        default="outside",
        help="inside: the file takes RGB values of 0..255; outside (default): normalised images",
    )
    parser.add_argument(
        "--postprocessing",
        choices=places,
        default="outside",
        help="inside: it gives boxes in pixels, scores and classes; outside (default): logits and normalised boxes",
    )
    parser.add_argument(
        "--input-type",
        choices=("uint8", "float32"),
        help="of images that are pre-processed inside; default: uint8",
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix the image size; default: any")
    parser.add_argument("--batch", type=int, metavar="N", help="fix the number of images; default: any")
    parser.add_argument(
        "--opset", type=int, metavar="N", help=f"of ONNX, {DEFAULT_OPSET} or more; default: {DEFAULT_OPSET}"
    )
    parser.add_argument(
        "--sampler",
        choices=tuple(SAMPLERS),
        default="grid",
        help="deformable attention by GridSample (default, the faster one in onnxruntime) or by Gather (for TensorRT)",
    )
    parser.add_argument(
        "--check-size",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="compare on images of this size; can be repeated; default: three sizes by that of the config",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the config, such as model.num_queries=300"
    )
    add_checkpoint_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    settings = _check(args)
    if args.random_weights:
        torch.manual_seed(_SEED)
    detector = load_detector(
        args.weights,
        config=args.config_file,
        overrides=args.overrides,
        device="cpu",
        allow_targets=args.allow_targets,
        ema=args.ema,
    )
    if args.random_weights:
        fill_zeros(detector.model)
        print("The weights are random numbers: the file detects nothing that is there.", flush=True)
    table = _Table(settings)
    options: dict[str, Any] = {
        "class_names": detector.class_names,
        "resize": detector.resize,
        "settings": settings,
        "cases": _cases(args, settings),
        "overwrite": args.overwrite,
        "tell": lambda text: print(f"{text} ...", flush=True),
        "tabulate": table.add,
    }
    try:
        if _ending(args.output) == ".onnx":
            report = export_onnx(detector.model, args.output, opset=args.opset or DEFAULT_OPSET, **options)
        else:
            report = export_program(detector.model, args.output, **options)
    except ParityError as error:
        print(f"dinox: {error}", flush=True)
        if args.json_file:
            write_json(args.json_file, _description(args) | {"ok": False} | _comparisons(error.comparisons))
        return _DIFFERENT
    _print_summary(report)
    if args.json_file:
        write_json(args.json_file, _description(args) | {"ok": True} | _results(report))
    return 0


def _check(args: argparse.Namespace) -> ExportSettings:
    """All that can be told before a model is built."""
    flags = [text for text in args.overrides if "=" not in text]
    if flags:
        raise ValueError(f"expected one file to write and key=value, got {args.output!r} and {flags[0]!r}")
    check_target(args.output, endings=ENDINGS, overwrite=args.overwrite)
    check_json_target(args.json_file)
    if args.opset is not None:
        if _ending(args.output) != ".onnx":
            raise ValueError(f"--opset {args.opset} is a setting of ONNX files, got {args.output}: leave it out")
        check_opset(args.opset)
    if args.random_weights and not args.config_file:
        raise ValueError("--random-weights needs --config-file, such as dino/dino_r50_4scale_12ep")
    return ExportSettings(
        preprocessing=args.preprocessing,
        postprocessing=args.postprocessing,
        input_type=args.input_type,
        sampler=args.sampler,
        size=None if args.size is None else tuple(args.size),
        batch=args.batch,
    )


def _ending(path: str) -> str:
    return Path(path).suffix.lower()


def _cases(args: argparse.Namespace, settings: ExportSettings) -> list[Case] | None:
    if args.check_size is None:
        return None
    batches = _BATCHES if settings.batch is None else (settings.batch,)
    return [Case(batch, height, width) for height, width in args.check_size for batch in batches]


# ------------------------------------------------------------------------------------------------------------- printing


class _Table:
    """The comparisons, a line at a time."""

    def __init__(self, settings: ExportSettings):
        values = "scores" if settings.postprocessing == "inside" else "logits"
        columns = ("images", 6), ("size", 11), (values, 10), ("boxes", 8), ("ranking", 8), ("moved", 6), ("model", 8)
        self._header = "  " + " ".join(f"{name:>{width}}" for name, width in (*columns, ("file", 7)))

    def add(self, row: Comparison) -> None:
        if self._header:
            print(self._header)
            self._header = ""
        size = f"{row.case.width} x {row.case.height}"
        differences = " ".join(f"{value:8.1e}" for value in (row.logits, row.boxes, row.ranking))
        seconds = f"{row.model_seconds:6.2f}s {row.file_seconds:6.2f}s"
        print(f"  {row.case.batch:>6} {size:>11}   {differences} {row.moved:>6}  {seconds}", flush=True)


def _print_summary(report: ExportReport) -> None:
    description = report.description
    worst = max(row.worst for row in report.comparisons)
    sides = f"any size (squares: from {description.smallest_square} pixels)"
    if description.size:
        sides = f"{description.size[1]} x {description.size[0]} pixels"
    print(
        f"The file computes what the model computes: largest difference {worst:.1e} (allowed: {TOLERANCE:g}).\n"
        "Columns: largest differences of the outputs, and of scores at equal ranks; how many queries and detections\n"
        "rounding has moved to another rank; the time of one run."
    )
    size, number = f"{report.bytes / 1e6:.1f} MB", description.batch or "any number of"
    print(f"{report.path}: {size}, written in {report.seconds:.0f} s; takes {number} images of {sides}")
    if description.nms_outside is not None:
        nms = description.nms_outside
        print(
            f"NMS is not in the file: the model runs {nms.method} within each class (IoU above {nms.iou_threshold:g}) "
            f"on its best\n{description.num_detections} detections, and so does dinox with the file. Other programs "
            "have to: nms_outside in its description."
        )
    trust = " --trust-program" if str(report.path).endswith(".pt2") else ""
    print(f"Next: dinox predict --weights {report.path}{trust} IMAGES")


# ----------------------------------------------------------------------------------------------------------------- json


def _description(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": "export",
        "file": os.fspath(args.output),
        "weights": args.weights,
        "config_file": args.config_file,
        "overrides": list(args.overrides),
    }


def _comparisons(rows: Sequence[Comparison]) -> dict[str, Any]:
    return {"tolerance": TOLERANCE, "comparisons": [dataclasses.asdict(row) for row in rows]}


def _results(report: ExportReport) -> dict[str, Any]:
    return {
        "bytes": report.bytes,
        "seconds": report.seconds,
        "description": dataclasses.asdict(report.description),
        **_comparisons(report.comparisons),
    }
