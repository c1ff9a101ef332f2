import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Test models are so small that threads only cost time; tests about threads set their own number."""
    torch.set_num_threads(1)
