"""One image through whole models."""

import pytest
import torch
from detectron2.structures import BitMasks

from dinox.analysis.collaboration import DETR, measure_image, prepare
from dinox.evaluation.matching import match_images
from dinox.modeling import ATSSHead, AuxiliaryHeads, DownsampledPyramid, FCOSHead, GFLHead, PAAHead, RetinaNetHead

from ...small_models import DINO, build_small, make_input, randomise_heads

CO_DEFORMABLE = "co_detr/co_deformable_detr_r50_12ep"
OTHER_DECODERS = [
    "detr/detr_r50_500ep",
    "conditional_detr/conditional_detr_r50_50ep",
    "anchor_detr/anchor_detr_r50_50ep",
    "dab_detr/dab_deformable_encoder_detr_r50_3patterns_50ep",
    "h_detr/h_deformable_detr_r50_12ep",
    DINO,
]


def measure(model, *, num_objects=3, seed=0):
    prepare(model)
    return measure_image(model, make_input(64, 96, num_objects, seed=1), torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def co_model():
    return randomise_heads(build_small(CO_DEFORMABLE))


def test_every_head_of_a_collaborative_model_has_a_map_and_positives(co_model):
    found = measure(co_model)
    assert list(found.cams) == [DETR, "roi", "atss"]
    for each in (found.encoder, found.attention, *found.cams.values(), found.foreground):
        assert each.shape == (64, 96)
    assert all(cam.max() == 1 and cam.min() >= 0 for cam in found.cams.values())
    assert found.num_objects == found.num_matched == 3
    assert list(found.positives) == ["roi", "atss"]
    assert all(len(positives.centers) >= 3 for positives in found.positives.values())
    assert len(found.queries.centers) == 20


def test_measuring_draws_from_the_generator_and_leaves_no_gradients(co_model):
    first, second = measure(co_model), measure(co_model)
    for head, cam in first.cams.items():
        assert torch.equal(cam, second.cams[head])
    assert all(parameter.grad is None for parameter in co_model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in co_model.modules())


def test_the_decoders_matches_are_those_of_detection(co_model):
    found = measure(co_model)
    (matches,) = match_images(co_model, [[make_input(64, 96, 3, seed=1)]])
    assert torch.equal(found.queries.target_index, matches.index_vector.long())
    torch.testing.assert_close(found.queries.centers, matches.anchors[:, :2])


def test_an_image_without_objects_has_maps_of_features_alone(co_model):
    found = measure(co_model, num_objects=0)
    assert found.attention is None and found.cams == {} and found.num_matched == 0
    assert not found.foreground.any() and found.encoder.shape == (64, 96)
    assert all(len(positives.centers) == 0 for positives in found.positives.values())


def test_a_class_activation_map_is_of_the_gradient_of_the_mean_logit_of_positives(co_model):
    """DETR's, computed again from the model's parts."""
    prepare(co_model)
    inputs = make_input(64, 96, 3, seed=1)
    found = measure(co_model)
    memory = co_model.encode(co_model.preprocess_image([inputs]))
    memory = memory.with_tokens(memory.tokens.detach().requires_grad_())
    matched = (found.queries.target_index >= 0).nonzero()[:, 0]
    labels = inputs["instances"].gt_classes[found.queries.target_index[matched]]
    logits = co_model.decode(memory, co_model.query_selection(memory)).groups["matching"].logits[-1, 0]
    (gradient,) = torch.autograd.grad(logits[matched, labels].mean(), memory.tokens)
    levels, offset = [], 0
    for height, width in memory.spatial_shapes:
        own = slice(offset, offset + height * width)
        offset += height * width
        weights = gradient[0, own].mean(0)  # (D,)
        level = (memory.tokens[0, own] @ weights).relu().detach().view(1, 1, height, width)
        level = level / level.max().clamp(min=1e-30)
        levels.append(torch.nn.functional.interpolate(level, size=(64, 96), mode="bilinear")[0, 0])
    cam = torch.stack(levels).mean(0)
    torch.testing.assert_close(found.cams[DETR], cam / cam.max())


def test_the_foreground_is_masks_where_the_data_has_them(co_model):
    prepare(co_model)
    inputs = make_input(64, 96, 1, seed=1)
    pixels = torch.zeros(1, 64, 96, dtype=torch.bool)
    pixels[0, 3, 4] = True
    inputs["instances"].gt_masks = BitMasks(pixels)
    found = measure_image(co_model, inputs, torch.Generator())
    assert found.foreground_of == "masks" and torch.equal(found.foreground, pixels[0])


@pytest.mark.parametrize("name", OTHER_DECODERS)
def test_every_kind_of_decoder_has_maps(name):
    found = measure(randomise_heads(build_small(name)))
    assert list(found.cams) == [DETR] and found.positives == {}
    assert found.attention.shape == (64, 96) and found.attention.max() > found.attention.min()
    assert (found.queries is None) == name.startswith("detr/")


def test_every_one_stage_head_has_maps():
    model = build_small("h_detr/deformable_detr_plus_plus_r50_12ep")
    kinds = {"atss": ATSSHead, "fcos": FCOSHead, "gfl": GFLHead, "paa": PAAHead, "retinanet": RetinaNetHead}
    levels = len(model.backbone.output_shape()) + 1
    model.auxiliary_heads = AuxiliaryHeads(
        adapter=DownsampledPyramid(embed_dim=32),
        num_decoder_layers=3,
        strides=[shape.stride for shape in model.backbone.output_shape().values()],
        **{name: kind(embed_dim=32, num_classes=80, num_levels=levels) for name, kind in kinds.items()},
    )
    found = measure(model)
    with_positives = {name for name, positives in found.positives.items() if len(positives.centers)}
    assert {"atss", "fcos", "gfl", "paa"} <= with_positives
    assert set(found.cams) == {DETR} | with_positives
