"""What ``train.amp`` may say."""

import pytest
from omegaconf import OmegaConf

from dinox.engine.mixed_precision import MixedPrecision


def of(amp):
    return MixedPrecision.of(OmegaConf.create({"train": {"amp": amp}}))


@pytest.mark.parametrize(
    ("amp", "precision"),
    [
        (None, "fp32"),
        ({}, "fp32"),
        ({"enabled": False, "dtype": "fp16"}, "fp32"),
        ({"enabled": True}, "bf16"),
        ({"enabled": True, "opt_level": "O1"}, "bf16"),
        ({"enabled": True, "dtype": "fp16"}, "fp16"),
    ],
)
def test_precision_is_fp32_unless_it_says_otherwise(amp, precision):
    assert of(amp).precision == precision


def test_a_config_without_the_key_trains_in_fp32():
    assert MixedPrecision.of(OmegaConf.create({"train": {}})) == MixedPrecision() == of(None)
