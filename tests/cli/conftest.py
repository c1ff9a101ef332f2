from pathlib import Path

import pytest

from dinox.cli import main

TINY_CONFIG = str(Path(__file__).parents[1] / "engine" / "tiny_config.py")


@pytest.fixture
def output_dir(tmp_path):
    """A folder that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def dinox(capsys):
    """Run the command line -> (exit code, stdout, stderr)."""

    def run(*argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
