"""What the ``dinox`` command does where detectron2 cannot be imported: none of its own modules can be then."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dinox.utils.environment_report import EnvironmentReport, Problem, format_report
from dinox.utils.json_files import write_json
from dinox.utils.software import optional_section, settings_section, software_section

_PROBLEMS_FOUND, _USER_ERROR = 1, 2  # exit codes, as everywhere


def runs_as_command() -> bool:
    """Whether this process was started as ``dinox`` or as ``python -m dinox``."""
    if sys.argv[:1] == ["-m"]:  # while python looks for the module
        options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
        return options[-2:] == ["-m", "dinox"] or options[-1:] == ["-mdinox"]
    return bool(sys.argv) and Path(sys.argv[0]).name == "dinox"


def explain(error: ImportError, arguments: Sequence[str]) -> int:
    """Print what is wrong in one line, or for ``dinox doctor`` with what is installed; returns the exit code.

    With ``--debug`` or DINOX_DEBUG the error is raised.
    """
    if "--debug" in arguments or os.environ.get("DINOX_DEBUG"):
        raise error
    if list(arguments[:1]) != ["doctor"]:
        print(f"dinox: error: {error}", file=sys.stderr)
        return _USER_ERROR
    parser = argparse.ArgumentParser(prog="dinox doctor")
    parser.add_argument("--json", dest="json_file")
    args, _ = parser.parse_known_args(arguments[1:])
    what, _, cure = str(error).partition(" Cure: ")
    software = software_section()
    software.problems.append(Problem(what, cure))
    report = EnvironmentReport([software, optional_section(), settings_section()])
    print(format_report(report), flush=True)
    if args.json_file:
        write_json(args.json_file, {"command": "doctor"} | report.as_dict())
    return _PROBLEMS_FOUND
