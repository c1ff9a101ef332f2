import pytest
import torch
from detectron2.config import instantiate

from dinox.checkpoint import convert
from dinox.config import load_config

from ..parity.golden import load_json


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        ("detrex_dino_r50_4scale_12ep", "dino/dino_r50_4scale_12ep"),
        ("detrex_dino_r50_5scale_12ep", "dino/dino_r50_5scale_12ep"),
    ],
)
def test_published_detrex_checkpoints_fill_the_model_exactly(keys, config):
    entries = load_json("keys", keys)["entries"]
    foreign = {key: torch.empty(shape, device="meta") for key, shape in entries.items()}
    with torch.device("meta"):
        model = instantiate(load_config(config, ["model.heads.shared=False"]).model)
    ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in convert(foreign, source="detrex").items()} == ours


def test_an_unknown_key_is_an_error_and_not_dropped():
    with pytest.raises(ValueError, match=r"1 of 2 keys are not those of a detrex checkpoint.*transformer\.surprise"):
        convert({"label_enc.weight": torch.zeros(1), "transformer.surprise": torch.zeros(1)}, source="detrex")


def test_an_unknown_source_is_an_error_with_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown checkpoint source 'detrx'.*Did you mean 'detrex'"):
        convert({}, source="detrx")
