import pytest

from dinox import Predictor
from tests.inference.marker import marker_config, write_checkpoint

ALLOWED = ("tests.inference.marker",)


@pytest.fixture
def weights(tmp_path):
    """A checkpoint that knows its config and classes."""
    return write_checkpoint(tmp_path / "model.pth", marker_config())


@pytest.fixture
def make_predictor(weights):
    def make(**options):
        return Predictor(weights, **{"allow_targets": ALLOWED, "device": "cpu"} | options)

    return make
