from pathlib import Path

import pytest

from dinox.config import load_config

TINY_CONFIG = str(Path(__file__).with_name("tiny_config.py"))
TINY_DINO_CONFIG = str(Path(__file__).with_name("tiny_dino_config.py"))


@pytest.fixture
def tiny_cfg(tmp_path):
    """The tiny config, with its output in a folder that does not exist yet."""
    return load_config(TINY_CONFIG, [f"train.output_dir={tmp_path / 'run'}"])


@pytest.fixture
def tiny_dino_cfg(tmp_path):
    """The config of a tiny DINO that measures its matching, with its output in a folder that does not exist yet."""
    return load_config(TINY_DINO_CONFIG, [f"train.output_dir={tmp_path / 'run'}"])
