import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from dinox.modeling import DetectionTransformer

from ..small_models import assert_trains_one_step, build_small, loss_keys, make_input, randomise_heads

STATIC = "dino/ablation_static_queries"
PURE = "dino/ablation_pure_selection"
MIXED = "dino/dino_r50_4scale_12ep"


@pytest.fixture(scope="module")
def model():
    return build_small()


def test_the_meta_architecture_is_registered_with_detectron2():
    assert META_ARCH_REGISTRY.get("DetectionTransformer") is DetectionTransformer


EDGE_CASES = {
    "one object": [(64, 96, 1)],
    "some images empty": [(64, 96, 3), (96, 64, 0)],
    "all images empty": [(64, 96, 0), (96, 64, 0)],
    "300 objects, more than queries": [(64, 96, 300)],
    "fewer tokens than queries": [(24, 24, 2)],
    "levels of one cell": [(9, 9, 2), (8, 8, 0)],
}


@pytest.mark.parametrize("config", [STATIC, PURE, MIXED])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_every_batch_gives_finite_losses_under_the_same_keys_and_gradients_everywhere(config, name):
    inputs = [make_input(h, w, n, seed=i) for i, (h, w, n) in enumerate(EDGE_CASES[name])]
    model = build_small(config)
    losses = assert_trains_one_step(model, inputs)
    assert set(losses) == loss_keys(encoder=config != STATIC)
    model.eval()
    for detections, x in zip(model(inputs), inputs, strict=True):
        found = detections["instances"]
        assert torch.isfinite(found.pred_boxes.tensor).all() and torch.isfinite(found.scores).all()
        assert found.image_size == (x["height"], x["width"])


def test_denoising_groups_are_invisible_to_each_other():
    model = randomise_heads(build_small())
    inputs = [make_input(64, 96, 3)]
    denoising = model.query_groups["denoising"]
    sample_noise = denoising.sample_noise

    def noise_of_last_group_changed(*args):
        noise = sample_noise(*args)
        noise.magnitude[:, -2:] *= 0.5
        return noise

    torch.manual_seed(7)
    before = model.predict(inputs, model.prepare_targets(inputs)).groups["denoising"]
    denoising.sample_noise = noise_of_last_group_changed
    torch.manual_seed(7)
    after = model.predict(inputs, model.prepare_targets(inputs)).groups["denoising"]
    last_group = 2 * 3  # positives and negatives of three objects
    assert torch.equal(before.logits[:, :, :-last_group], after.logits[:, :, :-last_group])
    assert not torch.equal(before.logits[:, :, -last_group:], after.logits[:, :, -last_group:])


def test_bf16_selects_the_proposals_of_float32_scores():
    """The order of the proposals gives every query its content; bf16 scores would be full of ties."""
    model = randomise_heads(build_small()).eval()
    memory = model.encode(model.preprocess_image([make_input(64, 96, 0)]))
    expected = model.query_selection.token_scores(memory)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.query_selection.token_scores(memory), expected)


def test_a_model_without_criterion_detects_and_says_that_it_cannot_train():
    model = build_small(MIXED, "model.criterion=null")
    with pytest.raises(ValueError, match="no criterion"):
        model([make_input(64, 64, 1)])
    assert len(model.eval()([make_input(64, 64, 0)])) == 1


def test_an_image_of_another_depth_is_an_error_that_names_it(model):
    with pytest.raises(
        ValueError, match=r"gray\.png: expected an image of shape \(3, height, width\), got \(1, 8, 8\)"
    ):
        model.eval()([{"image": torch.zeros(1, 8, 8), "file_name": "gray.png"}])


def test_fewer_proposals_than_queries_is_an_error():
    model = build_small(MIXED, "model.query_selection.num_proposals=7")
    with pytest.raises(ValueError, match="20 queries need as many proposals, but query_selection gives 7"):
        model([make_input(64, 64, 1)])


def test_denoising_with_an_indicator_trains():
    overrides = [
        "model.query_groups.denoising.label_embedding.indicator=True",
        "model.query_groups.matching.content.indicator=True",
    ]
    assert_trains_one_step(build_small(MIXED, *overrides), [make_input(64, 64, 2)])


def test_raw_predictions_need_no_ground_truth_in_either_mode(model):
    inputs = [{"image": make_input(64, 96, 0)["image"]}]
    for mode in (True, False):
        raw = model.train(mode).raw_predictions(inputs)
        assert raw.logits.shape == (3, 1, 20, 80)
        assert raw.boxes.shape == (3, 1, 20, 4)
        assert raw.encoder_logits.shape == (1, 20, 80)
        assert raw.encoder_boxes.shape == (1, 20, 4)


def test_training_without_ground_truth_is_an_error(model):
    with pytest.raises(ValueError, match=r"needs `instances`.*image 0 of the batch.*model.eval\(\)"):
        model.train()([{"image": torch.zeros(3, 64, 64)}])


def test_a_class_out_of_range_is_an_error_that_names_file_and_numbers(model):
    x = make_input(64, 96, 2)
    x["instances"].gt_classes[1] = 80
    with pytest.raises(ValueError, match=r"0\.png: gt_classes holds 80.*num_classes = 80"):
        model.train()([x])


def test_a_negative_box_is_an_error_that_names_file_and_index(model):
    x = make_input(64, 96, 2)
    x["instances"].gt_boxes.tensor[1] = torch.tensor([30.0, 10.0, 20.0, 40.0])
    with pytest.raises(ValueError, match=r"0\.png: gt_boxes\[1\] is \[30.0, 10.0, 20.0, 40.0\]"):
        model.train()([x])


def test_detections_come_back_in_the_size_asked_for(model):
    x = make_input(64, 96, 2)
    small = model.eval()([x])[0]["instances"]
    large = model.eval()([{**x, "height": 128, "width": 192}])[0]["instances"]
    assert large.image_size == (128, 192)
    torch.testing.assert_close(large.pred_boxes.tensor, small.pred_boxes.tensor * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_boxes_and_losses_in_float32(dtype):
    model = build_small()
    inputs = [make_input(64, 96, 3)]
    torch.manual_seed(0)
    plain = model(inputs)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        cast = assert_trains_one_step(model, inputs)
        assert model.raw_predictions(inputs).boxes.dtype == torch.float32
    for key, value in cast.items():
        assert value.dtype == torch.float32, key
        # Half precision may select other proposals; the losses must still be of the same size.
        assert value.item() == pytest.approx(plain[key].item(), rel=0.3, abs=0.1), key


@pytest.mark.parametrize("embed_dim", [24, 36, 64])
def test_any_width_divisible_by_heads_and_by_four(embed_dim):
    model = build_small("dino/dino_r50_4scale_12ep", f"model.embed_dim={embed_dim}")
    assert_trains_one_step(model, [make_input(64, 64, 2)])


def test_five_scales():
    model = build_small("dino/dino_r50_5scale_12ep")
    assert [s.stride for s in model.backbone.output_shape().values()] == [4, 8, 16, 32, 64]
    assert_trains_one_step(model, [make_input(64, 96, 2), make_input(50, 30, 1)])


def box_loss_gradient_of_first_head(look_forward: str) -> torch.Tensor:
    model = build_small(
        "dino/dino_r50_4scale_12ep", "model.heads.shared=False", f"model.decoder.look_forward={look_forward}"
    )
    for head in model.heads.box_heads:  # the zeros of the start would hide every gradient
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
    losses = model([make_input(64, 96, 3)])
    (gradient,) = torch.autograd.grad(
        losses["loss_bbox_1"], model.heads.box_heads[0].layers[0].weight, allow_unused=True
    )
    return torch.zeros(()) if gradient is None else gradient


def test_looking_forward_twice_teaches_a_layer_by_the_next_layers_loss():
    assert box_loss_gradient_of_first_head("twice").abs().max() > 0
    assert box_loss_gradient_of_first_head("once").abs().max() == 0
