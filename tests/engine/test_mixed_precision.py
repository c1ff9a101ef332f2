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
        ({"enabled": True, "dtype": "fp16"}, "fp16"),
    ],
)
def test_precision_is_fp32_unless_it_says_otherwise(amp, precision):
    assert of(amp).precision == precision


def test_a_config_without_the_key_trains_in_fp32():
    assert MixedPrecision.of(OmegaConf.create({"train": {}})) == MixedPrecision() == of(None)


@pytest.mark.parametrize(
    ("amp", "message"),
    [
        ("fp16", r"train\.amp: expected enabled, dtype, max_skips_in_a_row, or null, got 'fp16'"),
        (True, r"train\.amp: expected enabled, .*, got True"),
        ({"enable": True}, r"train\.amp\.enable: there is no such setting\. Did you mean 'enabled'"),
        ({"enabled": "yes"}, r"train\.amp\.enabled: expected true or false, got 'yes'"),
        ({"dtype": "fp17"}, r"train\.amp\.dtype: expected one of fp32, bf16, fp16, got 'fp17'"),
        *(
            (
                {"max_skips_in_a_row": value},
                r"train\.amp\.max_skips_in_a_row: expected a whole number of at least 1, got",
            )
            for value in (0, None, True, 2.5)
        ),
    ],
)
def test_mistakes_name_the_key(amp, message):
    with pytest.raises(ValueError, match=message):
        of(amp)
