"""A small DAB-DETR against the recorded outputs of detrex's: evaluation, training on a padded batch, losses."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from dinox.checkpoint import convert
from dinox.config import load_config

from .golden import load_json, load_npz
from .small_dino import golden_state_dict

CASE = "case5_dab_detr"
ATOL = 1e-4  # float32 of two implementations through 5 layers; the recording's own noise is below 1e-5
MEMORY_ATOL = 3e-4  # each of the two implementations is that far from float64 in a few tokens of the padded batch
OVERRIDES = [
    "model.backbone.bottom_up.depth=18",
    "model.embed_dim=64",
    "model.num_classes=10",
    "model.num_queries=24",
    "model.encoder.num_layers=2",
    "model.encoder.num_heads=4",
    "model.encoder.feed_forward_dim=128",
    "model.decoder.num_layers=3",
    "model.decoder.mask_memory=False",  # the recorded decoder attends to padding
    "model.postprocess.num_detections=30",
]


@pytest.fixture(scope="module")
def arrays():
    return load_npz(CASE, "data")


@pytest.fixture(scope="module")
def model():
    model = instantiate(load_config("dab_detr/dab_detr_r50_50ep", OVERRIDES).model)
    model.load_state_dict(convert(golden_state_dict(CASE), source="detrex"))
    return model


@pytest.fixture(scope="module")
def inputs(arrays):
    batch = []
    for i in range(2):
        image = torch.from_numpy(arrays[f"image_{i}"])
        height, width = image.shape[1:]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(arrays[f"gt_boxes_{i}"]))
        instances.gt_classes = torch.from_numpy(arrays[f"gt_classes_{i}"])
        batch.append({"image": image, "instances": instances, "height": 2 * height, "width": 2 * width})
    return batch


def assert_close(ours: torch.Tensor, recorded: np.ndarray, atol: float = ATOL) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), recorded, rtol=0, atol=atol)


@pytest.mark.parametrize("index", [0, 1])
def test_evaluation_of_one_image(model, inputs, arrays, index):
    model.eval()
    with torch.no_grad():
        memory = model.encode(model.preprocess_image([inputs[index]]))
        raw = model.raw_predictions([inputs[index]])
        found = model([inputs[index]])[0]["instances"]
    assert_close(memory.tokens.transpose(0, 1), arrays[f"img{index}_memory"])
    assert_close(raw.logits, arrays[f"img{index}_pred_logits_all"])
    assert_close(raw.boxes, arrays[f"img{index}_pred_boxes_all"])
    assert_close(found.scores, arrays[f"img{index}_det_scores"])
    np.testing.assert_array_equal(found.pred_classes.numpy(), arrays[f"img{index}_det_classes"])
    assert_close(found.pred_boxes.tensor, arrays[f"img{index}_det_boxes"], atol=0.05)  # pixels of a doubled image


def test_training_forward_of_a_padded_batch(model, inputs, arrays):
    model.train()
    with torch.no_grad():
        memory = model.encode(model.preprocess_image(inputs))
        raw = model.raw_predictions(inputs)
    padding = arrays["train_token_padding_mask"]
    np.testing.assert_array_equal(memory.padding_mask.numpy(), padding)
    recorded = arrays["train_memory"].transpose(1, 0, 2)[~padding]
    assert_close(memory.tokens[~memory.padding_mask], recorded, atol=MEMORY_ATOL)
    assert_close(raw.logits, arrays["train_pred_logits_all"])
    assert_close(raw.boxes, arrays["train_pred_boxes_all"])


def test_losses(model, inputs):
    recorded = load_json(CASE, "meta")["train_losses_weighted"]
    losses = model.train()(inputs)
    assert set(losses) == set(recorded)
    for key, value in recorded.items():
        assert losses[key].item() == pytest.approx(value, rel=ATOL), key


def test_padding_is_masked_by_default(inputs):
    """Without the recorded behaviour, an image's detections do not depend on its batch."""
    overrides = [each for each in OVERRIDES if "mask_memory" not in each]
    model = instantiate(load_config("dab_detr/dab_detr_r50_50ep", overrides).model)
    model.load_state_dict(convert(golden_state_dict(CASE), source="detrex"))
    model.eval()
    with torch.no_grad():
        together, alone = model.raw_predictions(inputs), model.raw_predictions(inputs[:1])
    torch.testing.assert_close(together.logits[:, :1], alone.logits, rtol=0, atol=ATOL)
    torch.testing.assert_close(together.boxes[:, :1], alone.boxes, rtol=0, atol=ATOL)
