"""dinox convert"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from omegaconf import DictConfig

from dinox.checkpoint import ConversionReport, convert_file, read_description
from dinox.checkpoint.certificate import TOLERANCE
from dinox.checkpoint.conversion import SOURCES, TARGETS
from dinox.checkpoint.conversion.converting import TrainingParts
from dinox.checkpoint.conversion.files import conversion_files
from dinox.cli.arguments import add_common_arguments, add_config_safety_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.config import apply_overrides, load_config
from dinox.config.errors import Source
from dinox.config.syntax import parse_value, split_override
from dinox.utils.json_files import write_json
from dinox.utils.tables import format_table
from dinox.utils.whole_files import NamedFile, check_outputs

_LISTED = 8  # names in the lists below the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="a checkpoint: .pth, .pkl or .safetensors, a file or a URL")
    parser.add_argument("output", metavar="OUT", help="the file to write: .pth or .safetensors")
    parser.add_argument(
        "--from",
        dest="source",
        choices=SOURCES,
        metavar="SOURCE",
        help=f"whose weights: {', '.join(SOURCES)} (default: told by their names)",
    )
    parser.add_argument(
        "--to",
        dest="target",
        choices=TARGETS,
        default=TARGETS[0],
        metavar="TARGET",
        help=f"whose format to write: {', '.join(TARGETS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--config-file",
        metavar="CONFIG",
        help="of the model: a file, or a name in the model zoo (default: the one in IN, if dinox wrote that)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the config, such as model.num_classes=20"
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the file's averaged weights, or those of the last step (default: the averaged ones of dinox's own "
        "files, those of the last step of others)",
    )
    parser.add_argument(
        "--category-ids",
        metavar="IDS",
        type=_category_ids,
        help="of dino, dn-detr and h-detr, whose class rows are category ids: those of the classes, such as 1-20,25 "
        "(default: COCO's 80 of 91 rows, else all)",
    )
    parser.add_argument(
        "--training-parts",
        choices=get_args(TrainingParts),
        default="keep",
        help="of co-detr: auxiliary heads and what makes queries of their positives. keep: to train on from the "
        "file; detection skips them. drop: a smaller file, for detection alone (default: %(default)s)",
    )
    parser.add_argument("--partial", action="store_true", help="write what fits, though the model needs more")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, and the files of --dump and --json")
    parser.add_argument(
        "--certificate", metavar="DUMP", help="compare the model's outputs with these of the original (.npz)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help="greatest difference from the certificate's logits and boxes (default: %(default)s)",
    )
    parser.add_argument("--dump", metavar="FILE", help="write the model's outputs for two images of noise (.npz)")
    add_config_safety_arguments(parser)
    add_common_arguments(parser)


def _category_ids(text: str) -> list[int]:
    """1-3,7 -> [1, 2, 3, 7]"""
    ids = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece.strip())
        if not match:
            raise argparse.ArgumentTypeError(f"expected numbers and ranges such as 1-20,25, got {piece!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"{piece.strip()} runs backwards: write {last}-{first}")
        ids += range(first, last + 1)
    repeated = next((number for number, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise argparse.ArgumentTypeError(f"{repeated} is there twice: each is the id of one class")
    return ids


def run(args: argparse.Namespace) -> int:
    return guarded(lambda: _convert(args), debug=args.debug)


def _convert(args: argparse.Namespace) -> None:
    check_json_target(args.json_file)
    _check_files(args)
    report = convert_file(
        args.input,
        args.output,
        cfg=_load_config(args),
        cfg_origin=args.config_file,
        source=args.source,
        target=args.target,
        fixed=list(_keys_set(args.overrides)),
        category_ids=args.category_ids,
        training_parts=args.training_parts,
        ema=args.ema,
        partial=args.partial,
        overwrite=args.overwrite,
        certify_with=args.certificate,
        tolerance=args.tolerance,
        dump=args.dump,
    )
    _print_report(report)
    _print_next(report, args)
    if args.json_file:
        write_json(args.json_file, report.as_dict())


def _check_files(args: argparse.Namespace) -> None:
    outputs, inputs = conversion_files(args.input, args.output, dump=args.dump, certify_with=args.certificate)
    if args.json_file:
        outputs.append(NamedFile("--json", args.json_file))
    if args.config_file:
        inputs.append(NamedFile("--config-file", args.config_file))
    check_outputs(outputs, inputs=inputs, overwrite=args.overwrite)


def _keys_set(overrides: Sequence[str]) -> Iterator[str]:
    """The keys that overrides name, those in mappings (``model.heads={shared: true}``) among them."""
    for text in overrides:
        source = Source("--overrides", text)
        key, written = split_override(source)
        yield from _keys_below(key, parse_value(source, key, written, is_text=True))


def _keys_below(key: str, value: Any) -> Iterator[str]:
    yield key
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _keys_below(f"{key}.{name}", member)


def _load_config(args: argparse.Namespace) -> DictConfig:
    if args.config_file is not None:
        return load_config(args.config_file, args.overrides, allow_targets=args.allow_targets)
    cfg = read_description(args.input, allow_targets=args.allow_targets).config
    if cfg is None:
        raise ValueError(
            f"--config-file is missing, and {args.input} does not hold one: give the config of the model, a file or a "
            "name in the model zoo such as dino/dino_r50_4scale_12ep"
        )
    return apply_overrides(cfg, args.overrides, file=f"{args.input} (its config)")


def _print_report(report: ConversionReport) -> None:
    origin = report.source if report.conversion.origin is None else report.conversion.origin.name
    told = ", told by the names of its tensors" if report.guessed else ""
    entry = f" (its entry {report.entry!r})" if report.entry else ""
    print(f"{report.path}{entry}: {origin}{told}")
    for setting in report.settings:
        print(f"  set, as there: {setting}")
    print()
    print(_table(report))
    print()
    comparison = report.comparison
    _print_names("missing, as initialised when loaded", comparison.missing)
    _print_names("unused, the model has none", comparison.unused)
    for name, (in_file, in_model) in comparison.mismatched.items():
        print(f"other shape: {name}: {in_file} in the file, {in_model} in the model")
    for why, count in Counter(report.conversion.skipped.values()).items():
        print(f"not needed: {count} tensors ({why})")
    for name, (before, after) in report.conversion.reshaped.items():
        print(f"class rows: {name}: {before[0]} -> {after[0]}")
    for note in report.notes:
        print(f"note: {note}")
    _print_certificate(report)
    print(f"wrote {report.output} ({report.size / 1e6:.1f} MB)")


def _table(report: ConversionReport) -> str:
    parts = report.comparison.by_part()
    columns = ("in_model", "used", "missing", "mismatched", "unused")
    rows = [[part.part, *(str(getattr(part, column)) for column in columns)] for part in parts]
    rows.append(["total", *(str(sum(getattr(part, column) for part in parts)) for column in columns)])
    return format_table(["tensors of", "in the\nmodel", "used", "missing", "other\nshape", "unused"], rows)


def _print_names(title: str, names) -> None:
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
        print(f"{title}: {', '.join(list(names)[:_LISTED])}{more}")


def _print_certificate(report: ConversionReport) -> None:
    found = report.certificate
    if found is None:
        return
    moved = f"; {found.reordered} queries ranked as there" if found.reordered else ""
    print(
        f"certificate: over {found.num_images} images and {found.num_layers} layers logits differ by at most "
        f"{found.logits:.2g} and boxes by {found.boxes:.2g}, tolerance {found.tolerance:g}{moved}"
    )


def _print_next(report: ConversionReport, args: argparse.Namespace) -> None:
    if args.dump:
        print(f"wrote {args.dump}, the model's outputs")
    if report.target != TARGETS[0]:
        return
    is_detector = report.comparison.is_exact and not (report.conversion.origin and report.conversion.origin.is_backbone)
    commands = [f"dinox predict IMAGES --weights {report.output}"] if is_detector else []
    if args.config_file is not None:
        settings = " ".join([*args.overrides, *report.settings, f"train.init_checkpoint={report.output}"])
        commands.append(f"dinox {'eval' if is_detector else 'train'} --config-file {args.config_file} {settings}")
    for number, command in enumerate(commands):
        print("      " if number else "next: ", command, sep="")
