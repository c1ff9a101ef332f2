"""The recorded outputs again, through the format of DINO's authors, into which the recording's weights are put here."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from dinox.checkpoint import convert
from dinox.config import load_config

from .golden import load_npz
from .official_dino import is_duplicate, official_name, with_duplicates
from .small_dino import CASE, DETREX, SMALL, golden_inputs, golden_state_dict

ATOL = 1e-4

CATEGORY_IDS = [1, 2, 3, 5, 7, 8, 11, 12, 13, 15]
"""As in COCO, rows are ids, and some ids belong to no class."""
NUM_ROWS = 17


def official_state_dict() -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in golden_state_dict().items():
        if not is_duplicate(name):
            is_table = name == "label_enc.weight"
            if is_table or name.startswith("class_embed."):
                scattered = torch.full((NUM_ROWS + is_table, *tensor.shape[1:]), 1e3)  # rows nobody may use
                scattered[CATEGORY_IDS] = tensor
                tensor = scattered
            weights[official_name(name)] = tensor
    return with_duplicates(weights)


@pytest.fixture(scope="module")
def model():
    model = instantiate(load_config("dino/dino_r50_4scale_12ep", [*DETREX, *SMALL]).model)
    model.load_state_dict(convert(official_state_dict(), source="dino", category_ids=CATEGORY_IDS))
    return model


def assert_close(ours: torch.Tensor, recorded: np.ndarray) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), recorded, rtol=0, atol=ATOL)


@pytest.mark.parametrize("index", [0, 1])
def test_evaluation_of_one_image(model, index):
    recorded = load_npz(CASE, "eval_single")
    model.eval()
    with torch.no_grad():
        raw = model.raw_predictions([golden_inputs()[index]])
    assert_close(raw.logits, recorded[f"img{index}_pred_logits_all"])
    assert_close(raw.boxes, recorded[f"img{index}_pred_boxes_all"])
    assert_close(raw.encoder_logits, recorded[f"img{index}_enc_logits"])
    assert_close(raw.encoder_boxes, recorded[f"img{index}_enc_boxes"])


def test_training_forward_of_a_padded_batch(model):
    recorded = load_npz(CASE, "train_batch")
    model.train()
    with torch.no_grad():
        raw = model.raw_predictions(golden_inputs())
    assert_close(raw.logits, recorded["pred_logits_all"])
    assert_close(raw.boxes, recorded["pred_boxes_all"])


def test_both_formats_give_the_same_weights():
    ours = convert(official_state_dict(), source="dino", category_ids=CATEGORY_IDS)
    through_detrex = convert(golden_state_dict(), source="detrex")
    assert ours.keys() == through_detrex.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in through_detrex.items())
