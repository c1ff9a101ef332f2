"""dinox analyze collaboration"""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dinox.analysis import find_checkpoints
from dinox.analysis.collaboration import (
    DETR,
    CollaborationReport,
    Curve,
    ModelCollaboration,
    NamedModel,
    analyze_collaboration,
    draw_collaboration,
)
from dinox.checkpoint import read_description
from dinox.cli.analysis_inputs import analysis_inputs
from dinox.cli.arguments import add_checkpoint_arguments
from dinox.config import apply_overrides
from dinox.engine.logs import RunLog
from dinox.inference.detector import config_of_checkpoint
from dinox.utils.json_files import write_json
from dinox.utils.tables import format_table


def add_collaboration_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT_OR_RUN_FOLDER",
        help="of one model each; a folder stands for its last one; and key=value for settings of all configs",
    )
    parser.add_argument(
        "--config-file",
        action="append",
        default=[],
        dest="config_files",
        metavar="CONFIG",
        help="a file, or a name in the model zoo; once for all checkpoints, or once for each, in their order; "
        "default: the ones in the checkpoints",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: their files')")
    parser.add_argument(
        "--images", type=int, metavar="N", help="so many, evenly spread over the configs' test set; default: all"
    )
    parser.add_argument("--output", metavar="FOLDER", help="for curves, distances and maps; default: none are drawn")
    parser.add_argument("--pictures", type=int, default=4, metavar="N", help="images drawn with maps; default: 4")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what heads sample; default: 0")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda; default: the GPU where there is one")
    add_checkpoint_arguments(parser)
    parser.set_defaults(overrides=[])


def analyze_collaboration_command(args: argparse.Namespace) -> None:
    inputs = analysis_inputs(args, expected="files, or output folders of runs")
    with RunLog(console="progress"):  # dinox's own warnings, and not what detectron2 says of datasets
        report = analyze_collaboration(
            _named_models(args, inputs.places, inputs.overrides),
            device=inputs.device,
            num_images=args.images,
            num_pictures=args.pictures if args.output else 0,
            seed=args.seed,
            ema=args.ema,
        )
    print(format_report(report))
    pictures = draw_collaboration(report, args.output) if args.output else []
    if pictures:
        print("\n" + "\n".join(f"picture  {path}" for path in pictures))
    if args.json_file:
        what = {"command": "analyze collaboration", "datasets": list(report.datasets)}
        write_json(args.json_file, what | {"models": [as_json(m) for m in report.models], "pictures": pictures})


def _named_models(args: argparse.Namespace, places: Sequence[str], overrides: Sequence[str]) -> list[NamedModel]:
    configs = args.config_files or [None]
    if len(configs) not in (1, len(places)):
        raise ValueError(f"--config-file: expected one, or one for each of {len(places)} checkpoints: {len(configs)}")
    if args.names is not None and len(args.names) != len(places):
        raise ValueError(f"--names: expected one for each of {len(places)} checkpoints, got {len(args.names)}")
    models = []
    for i, place in enumerate(places):
        path = find_checkpoints([place])[-1].path
        description = read_description(path, allow_targets=args.allow_targets)
        cfg, origin = config_of_checkpoint(description, configs[i % len(configs)], path, args.allow_targets)
        apply_overrides(cfg, overrides, file=origin)
        name = args.names[i] if args.names else _name_of(place, path, places)
        models.append(NamedModel(name, path, cfg, origin, description.class_names))
    return models


def _name_of(place: str, path: str, places: Sequence[str]) -> str:
    """A run's folder says more than ``model_final``; all of the path where that is not enough."""
    name = Path(place).resolve().name if os.path.isdir(place) else Path(path).stem
    others = [Path(p).resolve().name if os.path.isdir(p) else Path(p).stem for p in places]
    return name if others.count(name) == 1 else place


# ---------------------------------------------------------------------------------------------------------------- print


def format_report(report: CollaborationReport) -> str:
    """What the command prints."""
    first = report.models[0]
    where = "CPU" if report.device == "cpu" else report.device
    data = f" of {', '.join(report.datasets)}" if report.datasets else ""
    rows = [[model.name, _area(model.encoder), _area(model.attention)] for model in report.models]
    lines = [
        f"{_count(first.images, 'image')}{data} with {_count(first.objects, 'object')}; {where}",
        "",
        format_table(["area under IoF-IoB", "encoder\nfeatures", "decoder\nattention"], rows),
        "",
        f"IoF, IoB     shares of foreground (the objects' {first.foreground}) and background above a threshold;",
        "             an area of .5: a map that knows nothing of objects",
    ]
    for model in report.models:
        lines += ["", *_about_heads(model)]
    return "\n".join(lines)


def _about_heads(model: ModelCollaboration) -> list[str]:
    columns = {
        "positives\nper object": [f"{count:.2f}" for count in model.positives_per_object.values()],
        **_conflict_columns(model),
        **_gap_columns(model),
    }
    rows = [list(row) for row in zip(model.positives_per_object, *columns.values(), strict=True)]
    lines = [f"{model.name}: {model.checkpoint}", "", format_table(["head", *columns], rows), *_explained(model)]
    return [*lines, *([""] if model.notes else []), *model.notes]


def _conflict_columns(model: ModelCollaboration) -> dict[str, list[str]]:
    if model.conflicts is None:
        return {}
    columns = {
        f"KL to\n{head}": [_number(row[j], ".2g") if i != j else "0" for i, row in enumerate(matrix)]
        for matrix in [model.conflicts.distances.tolist()]
        for j, head in enumerate(model.conflicts.heads)
    }
    return columns | {"KL,\nmean": [_number(mean, ".2g") for mean in model.conflicts.means.tolist()]}


def _gap_columns(model: ModelCollaboration) -> dict[str, list[str]]:
    if not model.gaps:
        return {}
    gaps = [model.gaps.get(head) for head in model.positives_per_object]
    return {
        f"from {kind}\n{what}": ["-" if each is None else f"{getattr(getattr(each, kind), value):.3f}" for each in gaps]
        for kind in ("positive", "negative")
        for value, what in (("mean", "queries"), ("nearest", "(nearest)"))
    }


def _explained(model: ModelCollaboration) -> list[str]:
    lines = [("positives", f"over all objects; of {DETR}: matched queries")]
    if model.conflicts is not None:
        overall = _number(model.conflicts.overall, ".2g")
        lines += [
            ("KL", "of the row's class activation map from the column's, in nats: means over images;"),
            ("", f"{overall} over all pairs of heads"),
        ]
    if model.gaps:
        lines += [
            (
                "from ...",
                "mean distance of matched (positive) and other (negative) queries of the decoder to the head's",
            ),
            ("", "positives: of all pairs, and to the nearest one; centres, as shares of the image"),
        ]
    return ["", *(f"{name:<13}{text}" for name, text in lines)]


def _area(curve: Curve | None) -> str:
    return "-" if curve is None else f"{curve.area:.3f}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# ----------------------------------------------------------------------------------------------------------------- json


def as_json(model: ModelCollaboration) -> dict:
    """Numbers only; None where there are none."""
    conflicts = model.conflicts
    return {
        "name": model.name,
        "checkpoint": model.checkpoint,
        "images": model.images,
        "objects": model.objects,
        "foreground": model.foreground,
        "iof_iob": {"encoder": _curve(model.encoder), "attention": _curve(model.attention)},
        "conflicts": None
        if conflicts is None
        else {
            "heads": list(conflicts.heads),
            "kl": [[_or_none(value) for value in row] for row in conflicts.distances.tolist()],
            "mean_to_others": [_or_none(value) for value in conflicts.means.tolist()],
            "overall": _or_none(conflicts.overall),
            "images": conflicts.images.tolist(),
        },
        "positives_per_object": model.positives_per_object,
        "query_distances": {head: asdict(gaps) for head, gaps in model.gaps.items()},
        "notes": list(model.notes),
    }


def _curve(curve: Curve | None) -> dict | None:
    if curve is None:
        return None
    thinned = curve.thinned()
    shares = {key: getattr(thinned, key).tolist() for key in ("thresholds", "iof", "iob")}
    return {"area": curve.area, "images": curve.images} | shares


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
