"""What holds for every detector of the family, with denoising and without."""

import pytest
import torch
from detectron2.structures import Boxes

from ..small_models import assert_trains_one_step, build_small, make_input, randomise_heads

BASES = [
    "detr/detr_r50_500ep",
    "conditional_detr/conditional_detr_r50_50ep",
    "anchor_detr/anchor_detr_r50_50ep",
    "dab_detr/dab_detr_r50_50ep",
    "dab_detr/dab_detr_r50_3patterns_50ep",
    "dab_detr/dab_deformable_encoder_detr_r50_3patterns_50ep",
    "dab_detr/dab_deformable_detr_r50_50ep",
    "dab_detr/dab_deformable_detr_r50_two_stage_50ep",
    "deformable_detr/deformable_detr_r50_50ep",
    "deformable_detr/deformable_detr_r50_with_box_refinement_50ep",
    "deformable_detr/deformable_detr_r50_two_stage_50ep",
    "stable_dino/stable_deformable_detr_r50_12ep",
    "stable_dino/stable_dab_deformable_detr_r50_12ep",
    "h_detr/deformable_detr_plus_plus_r50_12ep",
    "h_detr/h_deformable_detr_r50_12ep",
    "stable_dino/stable_h_detr_r50_12ep",
    "group_detr/group_dab_detr_r50_dc5_12ep",
]
DINOS = ["dino/dino_r50_4scale_12ep", "dino/ablation_pure_selection", "dino/ablation_static_queries"]
WITH_DENOISING = [
    "dn_detr/dn_detr_r50_50ep",
    "dn_detr/dn_deformable_encoder_detr_r50_3patterns_50ep",
    "dn_detr/dn_deformable_detr_r50_50ep",
    "dn_detr/dn_anchor_detr_r50_dc5_12ep",
    "dn_detr/dn_vanilla_detr_r50_300ep",
    "dn_detr/dn_conditional_detr_r50_50ep",
    "dn_detr/dn_deformable_detr_points_r50_50ep",
    "dn_detr/dn_deformable_detr_points_with_box_refinement_r50_50ep",
    "dn_detr/dn_deformable_detr_two_stage_r50_50ep",
    "dn_detr/dn_dab_deformable_detr_two_stage_r50_50ep",
    "dn_detr/dino_dn_r50_4scale_12ep",
    "stable_dino/stable_dino_r50_4scale_12ep",
    "stable_dino/stable_dino_r50_4scale_12ep_released",
    "group_detr/dn_group_dab_detr_r50_dc5_12ep",
]


def build(config: str, *overrides: str) -> torch.nn.Module:
    undilated = ["model.backbone.bottom_up.res5_dilation=1"] if "dc5" in config else []
    return build_small(config, *undilated, *overrides)


@pytest.mark.parametrize("config", BASES + WITH_DENOISING)
def test_crowded_tiny_and_empty_images_give_the_same_losses(config):
    model = build(config)
    batches = [
        [make_input(64, 96, 90)],  # more objects than queries
        [make_input(9, 9, 2), make_input(8, 8, 0)],  # levels of one cell, fewer tokens than queries
        [make_input(64, 96, 0), make_input(96, 64, 0)],
    ]
    keys = [set(assert_trains_one_step(model, batch)) for batch in batches]
    assert keys[0] == keys[1] == keys[2]
    assert ("loss_class_dn" in keys[0]) == (config in WITH_DENOISING)


@pytest.mark.parametrize("config", BASES + WITH_DENOISING)
def test_half_precision_ends_at_the_losses(config):
    """Under bf16 autocast, losses and gradients are float32 and finite, and none is missing."""
    model = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([make_input(64, 96, 2), make_input(50, 40, 0)])
    sum(losses.values()).backward()
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("config", BASES + WITH_DENOISING)
def test_float64_stays_float64(config):
    model = build(config).double()
    inputs = [make_input(64, 96, 2)]
    for x in inputs:
        x["image"] = x["image"].double()
    assert all(value.dtype == torch.float64 for value in model(inputs).values())


@pytest.mark.parametrize("config", BASES)
def test_one_decoder_layer_has_no_parameters_that_only_later_layers_use(config):
    model = build(config, "model.decoder.num_layers=1")
    assert_trains_one_step(model, [make_input(64, 96, 2)])


@pytest.mark.parametrize("config", [*BASES, *DINOS, "stable_dino/stable_dino_r50_4scale_12ep"])
def test_detections_do_not_depend_on_the_batch(config):
    """1e-4 on logits and on boxes as a share of the image; only the order of summation differs. With query selection on
    four levels, the last image has fewer tokens than the batch selects.
    """
    model = randomise_heads(build(config)).eval()
    inputs = [make_input(64, 96, 2, seed=0), make_input(96, 64, 2, seed=1), make_input(16, 24, 2, seed=2)]
    assert model.num_queries > 2 * 3 + 1 + 1 + 1
    together, detections = model.raw_predictions(inputs), model(inputs)
    for i, x in enumerate(inputs):
        alone = model.raw_predictions([x])
        queries = slice(None) if together.padding_mask is None else ~together.padding_mask[i]
        torch.testing.assert_close(together.logits[:, i, queries], alone.logits[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.boxes[:, i, queries], alone.boxes[:, 0], atol=1e-4, rtol=0)
        assert len(model([x])[0]["instances"]) == len(detections[i]["instances"])


@pytest.mark.parametrize("config", WITH_DENOISING + DINOS)
def test_denoising_queries_are_invisible_to_matching_queries(config):
    """Other ground truth (as many objects) must leave the matching predictions as they are, bit for bit."""
    model = randomise_heads(build(config))
    inputs = [make_input(64, 96, 3, seed=0), make_input(80, 64, 2, seed=1)]

    def predictions():
        torch.manual_seed(7)
        return model.predict(inputs, model.prepare_targets(inputs))

    before = predictions()
    for x in inputs:
        x["instances"].gt_boxes = Boxes(x["instances"].gt_boxes.tensor * 0.5)
        x["instances"].gt_classes = (x["instances"].gt_classes + 1) % 80
    after = predictions()
    assert not torch.equal(before.groups["denoising"].logits, after.groups["denoising"].logits)
    assert torch.equal(before.of_matching().logits, after.of_matching().logits)
    assert torch.equal(before.of_matching().boxes, after.of_matching().boxes)


def test_without_the_attention_mask_matching_queries_see_the_objects():
    """What DN-DETR's table 5 leaves out, and why its AP falls to 24."""
    model = randomise_heads(build("dn_detr/ablation_no_attention_mask"))
    inputs = [make_input(64, 96, 3)]
    torch.manual_seed(7)
    before = model.predict(inputs, model.prepare_targets(inputs)).of_matching()
    inputs[0]["instances"].gt_classes = (inputs[0]["instances"].gt_classes + 1) % 80
    torch.manual_seed(7)
    after = model.predict(inputs, model.prepare_targets(inputs)).of_matching()
    assert not torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("config", ["conditional_detr/conditional_detr_r50_50ep", "dab_detr/dab_detr_r50_50ep"])
def test_dense_decoders_attend_to_padding_where_asked_to(config):
    inputs = [make_input(64, 96, 2), make_input(32, 32, 1)]
    masked, unmasked = (
        randomise_heads(build(config, f"model.decoder.mask_memory={mask}")).eval() for mask in (True, False)
    )
    small = slice(1, 2)
    alone = masked.raw_predictions(inputs[small])
    torch.testing.assert_close(masked.raw_predictions(inputs).logits[:, small], alone.logits, atol=1e-4, rtol=0)
    assert not torch.allclose(unmasked.raw_predictions(inputs).logits[:, small], alone.logits, atol=1e-4)


def test_two_stage_deformable_detr_teaches_all_tokens_objects_of_one_class():
    model = build("deformable_detr/deformable_detr_r50_two_stage_50ep")
    inputs = [make_input(64, 96, 3)]
    predictions = model.predict(inputs, model.prepare_targets(inputs))
    encoder = predictions.for_losses()[-1]
    assert encoder.logits.shape[2] == 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    targets = model.prepare_targets(inputs)
    (seen,) = model.criterion.view([encoder], targets)
    assert seen.labels.tolist() == [[0, 0, 0]] and torch.equal(seen.boxes, targets.boxes)


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("dab_detr/dab_detr_r50_50ep", "model.decoder.anchor_dim=2", "points stay where they are"),
        ("conditional_detr/conditional_detr_r50_50ep", "model.decoder.anchor_dim=4", "needs anchor boxes"),
        ("dab_detr/dab_detr_r50_50ep", "model.decoder.anchor_dim=3", "anchor_dim': expected one of 2, 4, got 3"),
        ("dab_detr/dab_detr_r50_50ep", "model.decoder.positions=given", "no positional queries"),
        ("conditional_detr/conditional_detr_r50_50ep", "model.decoder.look_forward=once", "points stay where they are"),
        ("detr/detr_r50_500ep", "model.encoder.num_heads=3", "embed_dim must be divisible by num_heads, got 32 and 3"),
        ("anchor_detr/anchor_detr_r50_50ep", "model.backbone.num_levels=2", "are for one level, got num_levels = 2"),
        ("dab_detr/dab_detr_r50_50ep", "model.decoder.look_forward=thrice", "look_forward must be one of"),
        ("deformable_detr/deformable_detr_r50_50ep", "model.decoder.positions=anchors", "needs anchor boxes"),
        ("dn_detr/dn_detr_r50_50ep", "model.query_groups.label_embedding=null", "needs a label embedding"),
        ("dn_detr/dn_detr_r50_50ep", "model.query_groups.label_embedding.unknown_class=False", "unknown_class=True"),
        ("dab_detr/dab_detr_r50_3patterns_50ep", "model.query_groups.matching.anchors.times=2", "repeat the anchors"),
        ("dn_detr/dn_detr_r50_50ep", "model.query_groups.denoising.box_noise.scale=-0.1", "scale must lie in"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_clear_error(config, override, message):
    with pytest.raises(ValueError, match=message):
        build(config, override)([make_input(64, 64, 1)])
