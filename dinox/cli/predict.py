"""dinox predict"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from dinox.cli.arguments import (
    add_checkpoint_arguments,
    split_overrides,
)
from dinox.cli.running import USER_ERROR, check_json_target, guarded
from dinox.cli.tta import TTAOptions, add_tta_arguments
from dinox.inference import Predictor
from dinox.inference.files import Outputs, check_files, predict_files
from dinox.inference.inputs import find_inputs
from dinox.inference.predictor import SCORE_THRESHOLD
from dinox.inference.report import Report
from dinox.utils.json_files import write_json
from dinox.utils.whole_files import NamedFile

DEFAULT_OUTPUT = "output/predict"

_SOME_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders, patterns in quotes ('photos/**/*.jpg'), - for paths on the standard input; "
        "and key=value for settings of the config",
    )
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a checkpoint, or an exported model (.onnx, .pt2)"
    )
    parser.add_argument(
        "--config-file", metavar="CONFIG", help="a file, or a name in the model zoo; default: the one in the checkpoint"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help=f"for pictures and videos; default: {DEFAULT_OUTPUT}, or the next free {DEFAULT_OUTPUT}-2, ...",
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=SCORE_THRESHOLD,
        metavar="SCORE",
        help=f"least score of a detection, 0 to 1; default: {SCORE_THRESHOLD}, for COCO's metrics: 0",
    )
    parser.add_argument("--classes", metavar="A,B", help="names of the classes to keep; default: all")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once; default: 1")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; default: the GPU where there is one")
    parser.add_argument(
        "--tile", type=int, metavar="SIZE", help="cut larger images into overlapping tiles of so many pixels"
    )
    parser.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of an image file")
    parser.add_argument("--coco-json", metavar="FILE", help="write COCO's results of all images to FILE")
    parser.add_argument(
        "--coco-images", metavar="JSON", help="a COCO json with the ids of images and categories that they refer to"
    )
    parser.add_argument(
        "--trust-program", action="store_true", help="read a .pt2, which can run code when it is loaded"
    )
    add_tta_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    texts, overrides = split_overrides(args.inputs)
    check_json_target(args.json_file)
    check_json_target(args.coco_json, option="--coco-json")
    if args.coco_images and not args.coco_json:
        raise ValueError(f"--coco-images {args.coco_images} says what --coco-json refers to: give both, or neither")
    inputs = find_inputs(texts, standard_input=sys.stdin)
    outputs = Outputs(
        folder=Path(args.output) if args.output else _free_folder(Path(DEFAULT_OUTPUT)),
        pictures=not args.no_pictures,
        coco_json=Path(args.coco_json) if args.coco_json else None,
        coco_images=Path(args.coco_images) if args.coco_images else None,
        overwrite=args.overwrite,
    )
    others_read = [("--weights", args.weights), ("--config-file", args.config_file)]
    check_files(
        inputs,
        outputs,
        others_read=[NamedFile(option, path) for option, path in others_read if path],
        others_written=[NamedFile("--json", args.json_file)] if args.json_file else [],
    )
    predictor = Predictor(
        args.weights,
        config=args.config_file,
        overrides=[*overrides, *args.overrides],
        device=args.device,
        score_threshold=args.score_threshold,
        classes=args.classes.split(",") if args.classes else None,
        batch_size=args.batch_size,
        tile=args.tile,
        max_pixels=args.max_pixels,
        allow_targets=args.allow_targets,
        trust_program=args.trust_program,
        wrapper=TTAOptions.of(args).wrapper(),
        ema=args.ema,
    )
    predictions = predict_files(predictor, inputs, outputs)
    report = Report(
        predictor.class_names, score_threshold=predictor.score_threshold, keep_detections=bool(args.json_file)
    )
    # Nothing but the bar is printed meanwhile; without a terminal, not even that.
    with tqdm(total=len(inputs), unit="input", disable=None, leave=False) as bar:
        for prediction in predictions:
            report.add(prediction)
            bar.update(report.num_inputs - bar.n)
    if args.json_file:
        write_json(args.json_file, {"command": "predict", "weights": args.weights} | report.as_json())
    if report.has_results:
        print(report.text())
        print(_written(report, outputs, args.json_file), flush=True)
    if report.failures:
        print(_failed(report), file=sys.stderr)
        return _SOME_FAILED if report.has_results else USER_ERROR
    return 0


def _free_folder(default: Path) -> Path:
    folder, number = default, 2
    while folder.exists():
        folder, number = default.with_name(f"{default.name}-{number}"), number + 1
    return folder


def _written(report: Report, outputs: Outputs, json_file: str | None) -> str:
    lines = []
    if outputs.pictures:
        lines.append(f"pictures    {outputs.folder}")
    if report.num_videos:
        lines.append(f"frames      {outputs.folder}/*.jsonl")
    if outputs.coco_json:
        lines.append(f"coco json   {outputs.coco_json}")
        if outputs.coco_images is None:
            lines.append(f"its images  {outputs.coco_images_file}")
    if json_file:
        lines.append(f"json        {json_file}")
    return "\n".join(["", *lines]) if lines else ""


def _failed(report: Report) -> str:
    if len(report.failures) == 1:
        return f"dinox: error: {report.failures[0].error}"
    errors = "".join(f"\n  {failure.error}" for failure in report.failures)
    return f"dinox: error: {len(report.failures)} of {report.num_inputs} inputs failed:{errors}"
