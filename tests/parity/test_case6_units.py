"""Building blocks against recorded values (FILL_RULE.md, case 6). Tolerances are a few float32 roundings."""

import numpy as np
import pytest
import torch

from dinox.layers import sine_anchor_embedding, sine_position_map
from dinox.layers.deformable_attention import ring_offsets
from dinox.losses import sigmoid_focal_loss
from dinox.modeling.queries import proposal_logits
from dinox.modeling.queries.selection import QuerySelection
from dinox.structures import cxcywh_to_xyxy, generalized_box_iou, inverse_sigmoid

from ..small_models import make_memory
from .golden import fill, load_npz


@pytest.fixture(scope="module")
def units():
    return {key: torch.from_numpy(np.asarray(value)) for key, value in load_npz("case6_units", "units").items()}


def assert_close(ours: torch.Tensor, recorded: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def memory(units):
    """The recorded flattened levels, their padding given as masks."""
    shapes = [tuple(hw) for hw in units["prop_shapes"].tolist()]
    masks = units["prop_masks"].split([h * w for h, w in shapes], 1)
    inside = [~mask.unflatten(1, hw) for mask, hw in zip(masks, shapes, strict=True)]
    valid = torch.stack([torch.stack([m[:, :, 0].sum(1), m[:, 0].sum(1)], -1) for m in inside], 1)
    return make_memory(units["prop_memory"], shapes, valid.tolist())


@pytest.mark.parametrize(
    ("key", "temperature", "offset"),
    [("pos2d_t10000_off-0.5", 10000, -0.5), ("pos2d_t20_off0", 20, 0.0), ("pos2d_t10000_off0", 10000, 0.0)],
)
def test_sine_position_map_on_valid_pixels(units, key, temperature, offset):
    mask, recorded = units["mask"], units[key]
    ours = sine_position_map(mask, recorded.shape[1] // 2, temperature, offset)
    valid = ~mask[:, None].expand_as(ours)
    assert_close(ours[valid], recorded[valid])


@pytest.mark.parametrize(("key", "features"), [("anchor_sine_64", 64), ("anchor_sine_128", 128)])
def test_anchor_embedding_of_boxes(units, key, features):
    assert_close(sine_anchor_embedding(units["anchors"], features), units[key])


def test_anchor_embedding_of_points(units):
    assert_close(sine_anchor_embedding(units["anchors"][..., :2], 16), units["anchor_sine_2d_16"])


def test_inverse_sigmoid(units):
    assert_close(inverse_sigmoid(units["invsig_in"]), units["invsig_out"])


@pytest.mark.parametrize(("heads", "levels", "points"), [(8, 4, 4), (4, 3, 4), (6, 5, 2)])
def test_initial_sampling_offsets(units, heads, levels, points):
    assert_close(ring_offsets(heads, levels, points), units[f"offset_bias_init_h{heads}_l{levels}_p{points}"])


def test_valid_ratios(units, memory):
    assert_close(memory.valid_ratios, units["valid_ratios"])


def test_encoder_references(units, memory):
    references = memory.cell_centers[:, :, None] * memory.valid_ratios[:, None]
    assert_close(references, units["encoder_reference_points"])


def test_proposal_logits(units, memory):
    logits, kept = proposal_logits(memory)
    assert_close(logits, units["prop_output_unsigmoid"])
    torch.testing.assert_close(kept, ~units["prop_output_unsigmoid"].isinf().any(-1))


def test_projected_proposal_features(units, memory):
    selection = QuerySelection(embed_dim=64, num_classes=10, num_proposals=50)
    for name in ("weight", "bias"):
        getattr(selection.projection, name).data = fill(
            f"transformer.enc_output.{name}", getattr(selection.projection, name).shape
        )
        getattr(selection.norm, name).data = fill(
            f"transformer.enc_output_norm.{name}", getattr(selection.norm, name).shape
        )
    _, kept = proposal_logits(memory)
    projected = selection.norm(selection.projection(memory.tokens * kept[..., None]))
    assert_close(projected, units["prop_output_memory"], atol=2e-5)


def test_generalized_iou(units):
    a, b = cxcywh_to_xyxy(units["giou_a_cxcywh"]), cxcywh_to_xyxy(units["giou_b_cxcywh"])
    assert_close(generalized_box_iou(a[:, None], b[None]), units["giou"])


def test_focal_loss(units):
    loss = sigmoid_focal_loss(units["focal_logits"], units["focal_onehot"]).sum() / 3  # three boxes
    assert_close(loss, units["focal_loss"])


def test_fill_rule(units):
    assert_close(
        fill("backbone.stem.conv1.weight", (64, 3, 7, 7)).flatten()[:8], units["fill_backbone.stem.conv1.weight_first8"]
    )
    assert_close(fill("class_embed.0.weight", (10, 64)).flatten()[:8], units["fill_class_embed.0.weight_10x64_first8"])
