"""dinox analyze matching"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence

from dinox.analysis import (
    LayerScores,
    MatchingReport,
    analyze_matching,
    draw_matching,
    find_checkpoints,
    read_layer_scores,
)
from dinox.analysis.layer_scores import first_known_layer
from dinox.checkpoint import read_description
from dinox.cli.analysis_inputs import analysis_inputs
from dinox.cli.arguments import add_checkpoint_arguments
from dinox.config import apply_overrides
from dinox.engine.logs import RunLog
from dinox.evaluation.matching import MatchingMetrics
from dinox.inference.detector import config_of_checkpoint
from dinox.utils.json_files import write_json
from dinox.utils.tables import format_table

TOP_K = 100
"""DINO's figures 4 (a) and (b)."""


def add_matching_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT_OR_RUN_FOLDER",
        help="of one run; a folder stands for all of its model_*.pth; and key=value for settings of the config",
    )
    parser.add_argument(
        "--config-file",
        metavar="CONFIG",
        help="a file, or a name in the model zoo; default: the one in the first checkpoint",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="so many, evenly spread over the config's test set; default: all"
    )
    parser.add_argument("--top-k", type=int, default=TOP_K, metavar="K", help=f"of ATD(K); default: {TOP_K}")
    parser.add_argument(
        "--output", metavar="FOLDER", help="for curves, bars and pictures of anchors; default: none are drawn"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="JSON",
        help="show the unstable scores of other runs too, from what --json wrote of them",
    )
    parser.add_argument("--pictures", type=int, default=4, metavar="N", help="images drawn with anchors; default: 4")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; default: the GPU where there is one")
    add_checkpoint_arguments(parser)
    parser.set_defaults(overrides=[])


def analyze_matching_command(args: argparse.Namespace) -> None:
    inputs = analysis_inputs(args, expected="files, or the output folder of a run")
    beside = [scores for path in args.beside for scores in read_layer_scores(path)]
    with RunLog(console="progress"):  # dinox's own warnings, and not what detectron2 says of datasets
        checkpoints = find_checkpoints(inputs.places)
        first = checkpoints[0].path
        description = read_description(first, allow_targets=args.allow_targets)
        cfg, origin = config_of_checkpoint(description, args.config_file, first, args.allow_targets)
        apply_overrides(cfg, inputs.overrides, file=origin)
        report = analyze_matching(
            checkpoints,
            cfg,
            origin=origin,
            device=inputs.device,
            num_images=args.images,
            top_k=args.top_k,
            class_names=description.class_names,
            ema=args.ema,
        )
    print(format_report(report, beside))
    pictures = draw_matching(report, args.output, pictures=args.pictures, beside=beside) if args.output else []
    if args.output:
        print("\n" + _written(pictures, args.output))
    if args.json_file:
        rows = [
            dataclasses.asdict(checkpoint) | dataclasses.asdict(metrics)
            for checkpoint, metrics in zip(report.checkpoints, report.metrics, strict=True)
        ]
        what = {"command": "analyze matching", "config": origin, "datasets": list(report.datasets)}
        write_json(args.json_file, what | {"checkpoints": rows, "pictures": pictures})


def format_report(report: MatchingReport, beside: Sequence[LayerScores] = ()) -> str:
    """What the command prints; columns that there are no values for are left out. ``beside``: of other analyses."""
    metrics = report.metrics[0]
    columns = {
        "\niterations": [_number(checkpoint.iterations, ",d") for checkpoint in report.checkpoints],
        "\nepoch": [_number(checkpoint.epochs, ".3g") for checkpoint in report.checkpoints],
        "\nIS": _cells(report.metrics, lambda each: each.instability, ".2f"),
    }
    if metrics.anchors is not None:
        unit = "\n(centres)" if metrics.anchors == "points" else ""
        columns[f"anchor to\ntarget L1{unit}"] = _cells(report.metrics, lambda each: each.anchor_target_l1, ".4f")
        columns[f"ATD({metrics.top_k})\nall"] = _cells(report.metrics, lambda each: each.atd, ".4f")
        columns[f"ATD({metrics.top_k})\nsmall"] = _cells(report.metrics, lambda each: each.atd_small, ".4f")
    columns = {name: cells for name, cells in columns.items() if set(cells) != {"-"} or name == "\nIS"}
    rows = [list(row) for row in zip([each.name for each in report.checkpoints], *columns.values(), strict=True)]
    where = "CPU" if report.device == "cpu" else report.device
    data = f" of {', '.join(report.datasets)}" if report.datasets else ""
    return "\n".join(
        [
            f"{_count(metrics.images, 'image')}{data} with {_count(metrics.objects, 'object')}, "
            f"{metrics.small:,} of them small; {where}",
            "",
            format_table(["checkpoint", *columns], rows),
            "",
            *_notes(report),
            *_unstable_scores(report, beside),
        ]
    )


def _unstable_scores(report: MatchingReport, beside: Sequence[LayerScores]) -> list[str]:
    """A table behind an empty line; nothing for a decoder of one layer that there is nothing to compare with."""
    groups = report.layer_scores(beside)
    if first_known_layer(groups) is None:
        return []
    layers = range(max(len(group.scores) for group in groups))
    rows = [
        [group.name, *(_number(group.scores[i] if i < len(group.scores) else None, ".2f") for i in layers)]
        for group in groups
    ]
    first = "with the encoder's proposals"
    if report.metrics[0].unstable_scores[0] is None:
        why = "does not classify just the proposals that it selects" if report.ranked_queries else "makes no queries"
        first = f"with nothing, for the encoder {why}"
    return [
        "",
        "Unstable scores: % of all objects that have another query than in the decoder layer before",
        f"(layer 1 is compared {first})",
        "",
        format_table(["decoder layer", *(str(i + 1) for i in layers)], rows),
    ]


def _notes(report: MatchingReport) -> list[str]:
    metrics, atd = report.metrics[0], f"ATD({report.metrics[0].top_k})"
    most = 2 * metrics.objects / metrics.images
    notes = [("IS", f"queries of an image with another match than in the row above, at most {most:.3g} here")]
    if report.ranked_queries:
        notes.append(("", "(queries are ranked proposals in this model: another order counts too)"))
    if metrics.anchors is None:
        return [*_aligned(notes), "", "Its queries have no anchors: no distances."]
    what = "centres (anchors are points)" if metrics.anchors == "points" else "centre and size"
    notes += [
        (
            "anchor to target",
            f"mean L1 distance of initial anchors and matched objects: {what}, as shares of the image",
        ),
        (
            atd,
            f"mean of the {metrics.top_k} largest of them; small: boxes of less than 32 x 32 pixels in the image file",
        ),
    ]
    if min(metrics.matched, metrics.matched_small) < metrics.top_k:
        notes.append(("", f"(of all where there are fewer: {metrics.matched} objects, {metrics.matched_small} small)"))
    if metrics.matched < metrics.objects:
        left = metrics.objects - metrics.matched
        notes.append(("unmatched", f"{_count(left, 'object')}, in images with more objects than queries"))
    return _aligned(notes)


def _aligned(notes: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name:<18}{text}" for name, text in notes]


def _cells(
    metrics: Sequence[MatchingMetrics], value: Callable[[MatchingMetrics], float | None], form: str
) -> list[str]:
    return [_number(value(each), form) for each in metrics]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _written(pictures: Sequence[str], folder: str) -> str:
    if not pictures:
        return f"no pictures in {folder}: curves take two checkpoints that tell their iterations, arrows take anchors"
    return "\n".join(f"picture  {path}" for path in pictures)
