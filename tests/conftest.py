import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Test models are so small that threads only cost time; tests about threads set their own number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def test_datasets(tmp_path_factory):
    """Where tests/engine/tiny_config.py, which is loaded in other processes too, has its images written."""
    os.environ["DINOX_TEST_DATASETS"] = str(tmp_path_factory.mktemp("datasets"))
