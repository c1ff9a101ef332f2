"""dinox doctor"""

import argparse

from dinox.analysis.environment import EnvironmentReport, examine_environment
from dinox.cli.arguments import add_common_arguments
from dinox.cli.running import check_json_target, guarded
from dinox.utils.json_files import write_json

PROBLEMS_FOUND = 1

_LEAST_WIDTH = 18  # of names, so that the values of most sections stand in one column


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


def format_report(report: EnvironmentReport) -> str:
    """Sections of aligned lines; the problems with their cures come last."""
    lines = []
    for section in report.sections:
        if section.facts:
            width = max(_LEAST_WIDTH, *(len(name) for name, _ in section.facts))
            lines += [section.title, *(f"  {name:{width}}  {value}" for name, value in section.facts), ""]
    if not report.problems:
        return "\n".join([*lines, "Nothing needs attention. Next: dinox demo"])
    lines.append("1 problem" if len(report.problems) == 1 else f"{len(report.problems)} problems")
    for number, problem in enumerate(report.problems, start=1):
        lines += [f"  {number}. {problem.what}", f"     cure: {problem.cure}"]
    return "\n".join(lines)
