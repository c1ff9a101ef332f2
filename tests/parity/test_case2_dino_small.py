"""Our DINO against recorded outputs of the reference implementation (FILL_RULE.md gives weights and tolerances).

The recording's own noise, float32 against float64, is 8e-6 on activations and 6e-6 on losses; 1e-4 leaves room for
another order of summation and lets no wrong formula through.
"""

import numpy as np
import pytest
import torch

from dinox.modeling.meta_arch.pyramids import padded_pyramid
from dinox.structures import PredictionSet

from .golden import load_json, load_npz
from .small_dino import CASE, build_small_dino, golden_inputs, golden_state_dict

ATOL = 1e-4


@pytest.fixture(scope="module")
def model():
    return build_small_dino()


@pytest.fixture(scope="module")
def inputs():
    return golden_inputs()


def assert_close(ours: torch.Tensor, recorded: np.ndarray, atol: float = ATOL) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), recorded, rtol=0, atol=atol)


def test_filled_weights_are_the_recorded_ones():
    entries = load_json(CASE, "state_dict")
    for key, tensor in golden_state_dict().items():
        if "alias_of" in entries[key]:
            continue
        assert tensor.double().sum().item() == pytest.approx(entries[key]["sum"], abs=1e-6), key
        assert tensor.double().abs().sum().item() == pytest.approx(entries[key]["abs_sum"], rel=1e-9), key


@pytest.mark.parametrize("index", [0, 1])
def test_evaluation_of_one_image(model, inputs, index):
    recorded = load_npz(CASE, "eval_single")
    model.eval()
    with torch.no_grad():
        raw = model.raw_predictions([inputs[index]])
        memory = model.encode(model.preprocess_image([inputs[index]]))
        detections = model([inputs[index]])[0]["instances"]
    assert_close(memory.tokens, recorded[f"img{index}_memory"])
    assert_close(raw.logits, recorded[f"img{index}_pred_logits_all"])
    assert_close(raw.boxes, recorded[f"img{index}_pred_boxes_all"])
    assert_close(raw.encoder_logits, recorded[f"img{index}_enc_logits"])
    assert_close(raw.encoder_boxes, recorded[f"img{index}_enc_boxes"])
    assert_close(detections.scores, recorded[f"img{index}_det_scores"])
    np.testing.assert_array_equal(detections.pred_classes.numpy(), recorded[f"img{index}_det_classes"])
    # Absolute boxes: the 1e-4 of normalised ones times an image side of up to 280 pixels.
    assert_close(detections.pred_boxes.tensor, recorded[f"img{index}_det_boxes"], atol=280 * ATOL)


def test_training_forward_of_a_padded_batch(model, inputs):
    recorded = load_npz(CASE, "train_batch")
    model.train()
    with torch.no_grad():
        raw = model.raw_predictions(inputs)
        memory = model.encode(model.preprocess_image(inputs))
    padding = recorded["token_padding_mask"]
    np.testing.assert_array_equal(memory.padding_mask.numpy(), padding)
    assert_close(memory.tokens[torch.from_numpy(~padding)], recorded["memory"][~padding])
    assert_close(raw.logits, recorded["pred_logits_all"])
    assert_close(raw.boxes, recorded["pred_boxes_all"])
    assert_close(raw.encoder_logits, recorded["enc_logits"])
    assert_close(raw.encoder_boxes, recorded["enc_boxes"])


def test_neck_maps_of_a_padded_batch(model, inputs):
    recorded = load_npz(CASE, "train_batch")
    model.train()
    with torch.no_grad():
        pyramid = padded_pyramid(model.backbone, model.preprocess_image(inputs))
    for level, ours in enumerate(pyramid.maps):
        assert_close(ours, recorded[f"neck_{level}"])


def test_losses_of_a_padded_batch_without_denoising(inputs):
    recorded = load_json(CASE, "losses")["losses"]
    model = build_small_dino()
    model.train()
    del model.query_groups["denoising"]  # the recording had none
    losses = model(inputs)
    for key, value in recorded.items():
        if "_dn" not in key:
            assert losses[key].item() == pytest.approx(value, rel=ATOL), key
    assert set(losses) == {key for key in recorded if "_dn" not in key}


def test_denoising_queries_leave_the_matching_losses_alone(model, inputs):
    recorded = load_json(CASE, "losses")["losses"]
    model.train()
    losses = model(inputs)
    assert set(losses) == set(recorded)
    for key, value in recorded.items():
        if "_dn" not in key:
            assert losses[key].item() == pytest.approx(value, rel=ATOL), key


def test_recorded_predictions_give_the_recorded_losses(model, inputs):
    """The criterion alone, on the recording's own predictions."""
    recorded, arrays = load_json(CASE, "losses")["losses"], load_npz(CASE, "train_batch")
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    sets = [
        PredictionSet("matching", tensors["pred_logits_all"], tensors["pred_boxes_all"]),
        PredictionSet("encoder", tensors["enc_logits"][None], tensors["enc_boxes"][None]),
    ]
    losses = model.criterion(sets, model.prepare_targets(inputs))
    for key, value in losses.items():
        assert value.item() == pytest.approx(recorded[key], rel=ATOL), key
