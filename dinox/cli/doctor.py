"""dinox doctor"""

import argparse

from dinox.analysis.environment import examine_environment
from dinox.cli.arguments import add_common_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.utils.environment_report import format_report
from dinox.utils.json_files import write_json

PROBLEMS_FOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    check_json_target(args.json_file)
    report = examine_environment()
    print(format_report(report), flush=True)
    if args.json_file:
        write_json(args.json_file, {"command": "doctor"} | report.as_dict())
    return PROBLEMS_FOUND if report.problems else 0
