from pathlib import Path

from tests.cli.conftest import dinox, forget_datasets, output_dir  # noqa: F401
from tests.faults import catalogue

FOLDER = Path(__file__).resolve().parent


def pytest_configure(config):
    """Called where this folder is what pytest was asked to run."""
    catalogue.register(config, FOLDER, FOLDER.parent)
