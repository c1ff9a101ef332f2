"""What `dinox analyze matching` and `dinox analyze collaboration` are given."""

import argparse
from dataclasses import dataclass

import torch

from dinox.analysis import check_output_folder
from dinox.cli.arguments import split_overrides
from dinox.cli.running import check_json_target
from dinox.engine.setup import resolve_device


@dataclass(frozen=True)
class AnalysisInputs:
    """places: checkpoints or folders of runs. overrides: key=value texts, of the config."""

    places: list[str]
    overrides: list[str]
    device: torch.device


def analysis_inputs(args: argparse.Namespace, *, expected: str) -> AnalysisInputs:
    """Of the command line. ``expected``: which places may be given. Raises ValueError for what cannot be done."""
    places, overrides = split_overrides(args.checkpoints)
    check_json_target(args.json_file)
    check_output_folder(args.output)
    if args.pictures < 0:
        raise ValueError(f"--pictures: expected a number of at least 0, got {args.pictures}")
    if not places:
        raise ValueError(f"which checkpoints? Got {overrides[0]!r} only: give {expected}")
    device = resolve_device("cuda" if torch.cuda.is_available() else "cpu", requested=args.device, setting="--device")
    return AnalysisInputs(places, [*overrides, *args.overrides], device)
