"""The ``dinox`` command. One module per subcommand, with add_arguments(parser) and run(args) -> exit code."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "doctor": "say what is installed, which operators run, and what is missing",
    "check-data": "look for faults in a dataset: its json, its images, and how they fit a config",
    "train": "train a detector from a config",
    "eval": "evaluate a checkpoint with the COCO metrics",
    "predict": "detect objects in images, folders and videos",
    "analyze": "count and time a detector's parts, or draw the curves of runs",
    "bench": "time training steps, detection, matching, and the deformable-attention operator",
    "convert": "turn checkpoints of other implementations into dinox's, and back",
    "export": "write a detector as ONNX or as a torch.export program",
    "demo": "train a small DINO on a synthetic dataset, evaluate it and draw its detections",
}
"""What ``dinox --help`` lists. A command's module has its name, and is imported when it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for faults found, 2 for mistakes of the user, 130 when
    interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv and argv[0] in COMMANDS else None
    module = None if command is None else importlib.import_module(f"dinox.cli.{command.replace('-', '_')}")
    parser = _make_parser(command, module)
    try:
        args, rest = parser.parse_known_args(argv)
        _take_late_overrides(parser, args, rest)
    except SystemExit as stop:  # argparse's way to end after --help and on mistakes
        return int(stop.code or 0)
    return module.run(args)


def _make_parser(command: str | None, module) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dinox",
        description="End-to-end detection transformers on detectron2.",
        epilog="dinox COMMAND --help tells more. An error's traceback: --debug, or DINOX_DEBUG=1.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == command:
            module.add_arguments(subparser)
    return parser


def _take_late_overrides(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]) -> None:
    """argparse stops to look for key=value at the first option that follows one."""
    if not hasattr(args, "overrides") or any(text.startswith("-") or "=" not in text for text in rest):
        if rest:
            parser.error(f"unknown arguments: {' '.join(rest)}")
        return
    args.overrides = [*args.overrides, *rest]
