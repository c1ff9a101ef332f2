from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dinox.cli import main

TINY_CONFIG = str(Path(__file__).parents[1] / "engine" / "tiny_config.py")


@pytest.fixture
def output_dir(tmp_path):
    """A folder that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def forget_datasets():
    """What a test registers is gone after it."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def dinox(capsys):
    """Run the command line -> (exit code, stdout, stderr)."""

    def run(*argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
