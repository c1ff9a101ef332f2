"""The ``dinox`` command. One module per subcommand, with HELP, add_arguments(parser) and run(args) -> exit code."""

import argparse
from collections.abc import Sequence

from dinox.cli import demo, eval, train

COMMANDS = {"train": train, "eval": eval, "demo": demo}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for mistakes of the user, 130 when interrupted."""
    parser = _make_parser()
    try:
        args, rest = parser.parse_known_args(argv)
        _take_late_overrides(parser, args, rest)
    except SystemExit as stop:  # argparse's way to end after --help and on mistakes
        return int(stop.code or 0)
    return COMMANDS[args.command].run(args)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dinox",
        description="End-to-end detection transformers on detectron2.",
        epilog="dinox COMMAND --help tells more. An error's traceback: --debug, or DINOX_DEBUG=1.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    return parser


def _take_late_overrides(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]) -> None:
    """argparse stops to look for key=value at the first option that follows one."""
    if not hasattr(args, "overrides") or any(text.startswith("-") or "=" not in text for text in rest):
        if rest:
            parser.error(f"unknown arguments: {' '.join(rest)}")
        return
    args.overrides = [*args.overrides, *rest]
