"""dinox check-data"""

import argparse
from dataclasses import asdict

from omegaconf import DictConfig, OmegaConf

from dinox.cli.arguments import add_common_arguments, add_config_safety_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.config import load_config
from dinox.data.image_paths import ALLOW_KEY
from dinox.data.inspection import (
    DINO_R50_4SCALE,
    DatasetReport,
    FileOptions,
    FixReport,
    ModelLimits,
    as_data,
    describe,
    describe_fix,
    fix_dataset,
    inspect_dataset,
    measure_step_memory,
    write_csv,
)
from dinox.data.inspection.fixing import check_target
from dinox.utils.json_files import write_json

DEFAULT_CONFIG = "dino/dino_r50_4scale_12ep"
FAULTS_FOUND = 1

EPILOG = """exit code: 0 nothing is wrong, 1 faults were found, 2 the dataset cannot be read.
errors stop training; what is left out is counted by training; notes are no faults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dataset", metavar="NAME|JSON", help="a dataset registered with detectron2, or a COCO json")
    parser.add_argument(
        "--images", metavar="FOLDER", help="the image folder, if it is not registered or beside the json"
    )
    parser.add_argument(
        "--val",
        metavar="NAME|JSON",
        action="append",
        default=[],
        help="a dataset to evaluate on, to compare (repeatable)",
    )
    parser.add_argument(
        "--config-file",
        metavar="CONFIG",
        help=f"what will be trained, for its classes, queries and memory (default: {DEFAULT_CONFIG}, any classes)",
    )
    parser.add_argument("--open-images", action="store_true", help="compare sizes and orientation of all image files")
    parser.add_argument("--decode-images", action="store_true", help="the same, and decode them to find damaged ones")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="threads that open images")
    parser.add_argument("--csv", metavar="FILE", help="write a line for each fault to FILE")
    parser.add_argument("--fix", metavar="NEW.json", help="write a new json without the faults that can be mended")
    parser.add_argument(
        f"--{ALLOW_KEY.replace('_', '-')}", action="store_true", help="read images outside of the image folder too"
    )
    add_config_safety_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return guarded(lambda: _check(args), debug=args.debug)


def _check(args: argparse.Namespace) -> int:
    check_json_target(args.json_file)
    check_json_target(args.csv, option="--csv")
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: expected at least 1")
    if args.fix:
        check_target(args.fix)
    # First, since a config may register the dataset.
    cfg = load_config(args.config_file or DEFAULT_CONFIG, allow_targets=args.allow_targets)
    files = _file_options(args, cfg)
    report = inspect_dataset(
        args.dataset,
        image_root=args.images,
        validation=args.val,
        limits=ModelLimits.of(cfg, name=args.config_file or DEFAULT_CONFIG),
        check_num_classes=args.config_file is not None,
        step_memory=DINO_R50_4SCALE if args.config_file is None else measure_step_memory(cfg),
        files=files,
    )
    print(describe(report))
    if args.csv:
        write_csv(args.csv, report)
    if args.json_file:
        write_json(args.json_file, as_data(report))
    if args.fix:  # last, so that nothing found is lost if it fails
        fixed = _fix(args, files, report)
        if args.json_file:
            write_json(args.json_file, as_data(report) | {"fix": asdict(fixed)})
    return FAULTS_FOUND if report.faults else 0


def _file_options(args: argparse.Namespace, cfg: DictConfig) -> FileOptions:
    opened = "headers" if args.open_images else "no"
    return FileOptions(
        open_images="pixels" if args.decode_images else opened,
        exif=OmegaConf.select(cfg, "dataloader.train.mapper.exif") or "apply",
        max_pixels=OmegaConf.select(cfg, "dataloader.train.mapper.max_pixels"),
        allow_outside_image_root=args.allow_outside_image_root,
        workers=args.workers,
        progress=True,
    )


def _fix(args: argparse.Namespace, files: FileOptions, report: DatasetReport) -> FixReport:
    fixed = fix_dataset(
        args.dataset,
        args.fix,
        image_root=args.images,
        files=files,
        opened=report.opened,
    )
    print(f"\n{describe_fix(fixed)}")
    return fixed
