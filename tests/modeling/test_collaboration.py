"""Auxiliary heads and positive queries in a whole model (Co-DETR)."""

import copy

import pytest
import torch
from detectron2.config import instantiate
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from dinox.analysis import count_parameters, measure_complexity
from dinox.config import load_config
from dinox.export.settings import SAMPLERS
from dinox.export.wrapper import make_exportable
from dinox.modeling import AuxiliaryHeads, DownsampledPyramid, FasterRCNNHead, MaskBranch, drop_training_parts
from dinox.structures import BACKGROUND

from ..small_models import (
    assert_trains_one_step,
    build_small,
    loss_keys,
    make_input,
    randomise_heads,
    small_overrides,
)

CO_DEFORMABLE = "co_detr/co_deformable_detr_r50_12ep"
CO_DINO = "co_detr/co_dino_r50_5scale_12ep"
BOTH = [CO_DEFORMABLE, CO_DINO]
BASE = ["model.auxiliary_heads=null", "model.query_groups.positive_roi=null", "model.query_groups.positive_atss=null"]
ONLY_ATSS = ["model.auxiliary_heads.roi=null", "model.query_groups.positive_roi=null"]
ONLY_ROI = ["model.auxiliary_heads.atss=null", "model.query_groups.positive_atss=null"]
HEAD_KEYS = {
    *(f"loss_roi_{term}" for term in ("rpn_class", "rpn_bbox", "class", "giou")),
    *(f"loss_atss_{term}" for term in ("class", "giou", "centerness")),
}


def inputs(first: int = 2, second: int = 0) -> list[dict]:
    return [make_input(64, 96, first), make_input(50, 40, second, seed=1)]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", BOTH)
def test_heads_and_groups_have_loss_keys_that_no_batch_changes(name):
    model = build_small(name)
    groups = ("", "_positive_roi", "_positive_atss") + (("_dn",) if name == CO_DINO else ())
    keys = assert_trains_one_step(model, inputs()).keys()
    assert keys == loss_keys(groups=groups) | HEAD_KEYS
    assert assert_trains_one_step(model, inputs(0, 0)).keys() == keys
    assert assert_trains_one_step(model, inputs(1, 150)).keys() == keys


@pytest.mark.parametrize("overrides", [ONLY_ATSS, ONLY_ROI], ids=["atss", "roi"])
def test_a_single_head_trains(overrides):
    losses = assert_trains_one_step(build_small(CO_DEFORMABLE, *overrides), inputs())
    (head,) = {"roi", "atss"} - {overrides[0].split(".")[2].split("=")[0]}
    assert {key for key in losses if "roi" in key or "atss" in key} == {
        *(key for key in HEAD_KEYS if f"_{head}_" in key),
        *(key for key in loss_keys(groups=(f"_positive_{head}",), encoder=False)),
    }


def test_heads_alone_and_queries_alone_train():
    without_queries = ["model.query_groups.positive_roi=null", "model.query_groups.positive_atss=null"]
    losses = assert_trains_one_step(build_small(CO_DEFORMABLE, *without_queries), inputs())
    assert losses.keys() == loss_keys(groups=("",)) | HEAD_KEYS
    model = build_small(CO_DEFORMABLE, "model.auxiliary_heads.loss_weight=0.0")
    assert all(model(inputs())[key] == 0 for key in HEAD_KEYS)


def test_two_heads_of_one_kind_have_their_own_weights_losses_and_queries():
    cfg = load_config(CO_DEFORMABLE, [*small_overrides(CO_DEFORMABLE), *ONLY_ATSS])
    cfg.model.auxiliary_heads.second = copy.deepcopy(cfg.model.auxiliary_heads.atss)
    cfg.model.query_groups.positive_second = copy.deepcopy(cfg.model.query_groups.positive_atss)
    cfg.model.query_groups.positive_second.head = "second"
    model = instantiate(cfg.model).train()
    losses = assert_trains_one_step(model, inputs())
    assert {"loss_atss_giou", "loss_second_giou", "loss_giou_positive_atss", "loss_giou_positive_second"} < set(losses)
    first, second = (dict(model.auxiliary_heads[name].named_parameters()) for name in ("atss", "second"))
    assert first.keys() == second.keys() and not any(first[name] is second[name] for name in first)


def test_losses_of_heads_count_lambda2_times_for_every_decoder_layer():
    model = build_small(CO_DEFORMABLE)
    assert model.auxiliary_heads.factor == 2 * len(model.decoder.layers)
    images = model.preprocess_image(inputs())
    sizes = [tuple(image.shape[1:]) for image in images]
    instances = [x["instances"] for x in inputs()]
    memory = model.encode(images)
    outputs = model.auxiliary_heads(memory, sizes, instances, torch.Generator().manual_seed(0))
    pyramid = model.auxiliary_heads.pyramid(memory, sizes, torch.Generator().manual_seed(0))
    for name in ("roi", "atss"):
        own = model.auxiliary_heads[name](pyramid, instances).losses
        for term, loss in own.items():
            torch.testing.assert_close(outputs[name].losses[f"loss_{name}_{term}"], 6 * loss)


def test_the_released_factor_is_twelve():
    cfg = load_config(CO_DINO)
    heads = cfg.model.auxiliary_heads
    assert heads.num_decoder_layers * heads.loss_weight == 12


def test_lambda1_weighs_all_losses_of_positive_queries():
    def losses(*overrides: str) -> dict[str, torch.Tensor]:
        model = build_small(CO_DEFORMABLE, *overrides)
        targets = model.prepare_targets(inputs())
        predictions = model.predict(inputs(), targets, torch.Generator().manual_seed(0))
        return model.criterion(predictions.for_losses(), targets)

    whole, half = losses(), losses("model.criterion.group_weights.positive_atss=0.5")
    for key, loss in whole.items():
        torch.testing.assert_close(half[key], loss * (0.5 if "positive_atss" in key else 1.0))


def test_gradients_of_heads_and_of_positive_queries_reach_the_backbone():
    model = build_small(CO_DEFORMABLE)
    for key in ("loss_atss_class", "loss_roi_class", "loss_class_positive_atss"):
        model.zero_grad()
        model(inputs())[key].backward()
        assert model.backbone.convs[0].conv.weight.grad.any(), key


def test_a_step_is_that_of_its_generator():
    model = build_small(CO_DINO)

    def total(seed: int) -> float:
        targets = model.prepare_targets(inputs())
        predictions = model.predict(inputs(), targets, torch.Generator().manual_seed(seed))
        return (
            sum(predictions.auxiliary_losses().values()).item()
            + sum(model.criterion(predictions.for_losses(), targets).values()).item()
        )

    assert total(0) == total(0) != total(1)


@pytest.mark.parametrize("name", BOTH)
def test_losses_are_float32_and_finite_in_half_precision(name):
    model = build_small(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs())
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


# ----------------------------------------------------------------------------------------------------------- isolation


@pytest.mark.parametrize("name", BOTH)
def test_matching_queries_do_not_see_positive_ones(name):
    """Bit for bit, whatever the positive queries hold. Without them the same sums are of fewer numbers, whose order the
    matrix library chooses by size: equal up to float32's rounding."""
    model = randomise_heads(build_small(name))
    targets = model.prepare_targets(inputs())

    def matching():
        with torch.no_grad():
            return model.predict(inputs(), targets, torch.Generator().manual_seed(0)).of_matching()

    before = matching()
    for group in ("positive_roi", "positive_atss"):
        for parameter in model.query_groups[group].parameters():
            parameter.data.normal_()
    after = matching()
    assert torch.equal(before.logits, after.logits) and torch.equal(before.boxes, after.boxes)
    del model.query_groups["positive_roi"], model.query_groups["positive_atss"]
    without = matching()
    torch.testing.assert_close(without.logits, before.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(without.boxes, before.boxes, rtol=1e-4, atol=1e-4)


def test_groups_of_two_heads_do_not_see_each_other():
    model = randomise_heads(build_small(CO_DEFORMABLE))
    targets = model.prepare_targets(inputs())

    def of_atss():
        with torch.no_grad():
            predictions = model.predict(inputs(), targets, torch.Generator().manual_seed(0))
        return predictions.groups["positive_atss"]

    before = of_atss()
    for parameter in model.query_groups["positive_roi"].parameters():
        parameter.data.normal_()
    assert torch.equal(before.logits, of_atss().logits)


def test_positive_queries_know_their_targets():
    model = build_small(CO_DEFORMABLE)
    targets = model.prepare_targets(inputs(5, 1))
    groups = model.predict(inputs(5, 1), targets).groups
    for name in ("positive_roi", "positive_atss"):
        index = groups[name].target_index
        assert (index != BACKGROUND).any()
        assert (index < torch.tensor(targets.counts)[:, None]).all()


def test_classes_of_all_groups_of_co_dino_learn_the_iou():
    """Quality focal loss: (q - p)^2 BCE(p, q) with the IoU q for the class of a positive and q = 0 for all others, over
    positives. Float32 sums of thousands of terms: 1e-4."""
    model = randomise_heads(build_small(CO_DINO))
    seen, loss = {}, model.criterion.losses["class"]
    model.criterion.losses["class"] = lambda matched: seen.setdefault(matched.group, matched) and loss(matched)
    losses = model(inputs(3, 1))
    assert seen.keys() == {"matching", "encoder", "denoising", "positive_roi", "positive_atss"}
    suffixes = {"matching": "", "encoder": "_enc", "denoising": "_dn"}
    for group, matched in seen.items():
        positive, logits = matched.positive[-1], matched.logits[-1]  # of the last layer
        pair = (matched.boxes[-1][positive], matched.target_boxes[-1][positive])
        iou = box_iou(*(box_convert(each, "cxcywh", "xyxy") for each in pair)).diagonal().detach()
        quality = torch.zeros_like(logits)
        quality[(*positive.nonzero().unbind(1), matched.labels[-1][positive])] = iou
        entries = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
        expected = (entries * (quality - logits.sigmoid()) ** 2).sum() / positive.sum()
        found = losses[f"loss_class{suffixes.get(group, f'_{group}')}"]
        assert positive.any() and found.item() == pytest.approx(expected.item(), rel=1e-4), group


# ----------------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize("name", BOTH)
def test_detection_has_the_parameters_flops_and_outputs_of_the_base(name):
    model, base = randomise_heads(build_small(name)).eval(), build_small(name, *BASE).eval()
    assert not base.load_state_dict(model.state_dict(), strict=False).missing_keys
    found, expected = model(inputs()), base(inputs())
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
    assert measure_complexity(model, size=(64, 96)).gflops[""] == measure_complexity(base, size=(64, 96)).gflops[""]
    drop_training_parts(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert count_parameters(model) == count_parameters(base)
    assert torch.equal(model(inputs())[0]["instances"].scores, expected[0]["instances"].scores)


def test_raw_predictions_need_no_ground_truth_in_training_mode():
    model = build_small(CO_DINO)
    raw = model.raw_predictions([{"image": x["image"]} for x in inputs()])
    assert raw.logits.shape[2] == model.num_queries


def test_exported_programs_have_nothing_of_the_heads():
    model, base = (build_small(CO_DEFORMABLE, *overrides).eval() for overrides in ([], BASE))
    sampler = next(iter(SAMPLERS.values()))
    assert make_exportable(model, sampler).state_dict().keys() == make_exportable(base, sampler).state_dict().keys()
    assert model.auxiliary_heads is not None  # what is exported is a copy
    model.auxiliary_heads.detect_with = "roi"
    with pytest.raises(ValueError, match=r"only the decoder's detections can be exported, .* is 'roi'"):
        make_exportable(model, sampler)


@pytest.mark.parametrize("head", ["roi", "atss"])
def test_one_head_can_detect_in_the_decoders_place(head):
    model = build_small(CO_DEFORMABLE, f"model.auxiliary_heads.detect_with={head}").eval()
    if head == "atss":  # an untrained one is sure of nothing
        model.auxiliary_heads.atss.branches.class_output.bias.data.zero_()
    images = model.preprocess_image(inputs())
    with torch.no_grad():
        expected = model.auxiliary_heads.detect(model.encode(images), [tuple(image.shape[1:]) for image in images])
    drop_training_parts(model)
    assert list(model.auxiliary_heads) == [head] and list(model.query_groups) == ["matching"]
    for found, own in zip(model.inference(inputs(), do_postprocess=False), expected, strict=True):
        assert 0 < len(found) <= 100
        assert torch.equal(found.scores, own.scores)
        assert torch.equal(found.pred_boxes.tensor, own.pred_boxes.tensor)
    scaled = model([{**x, "height": 2 * x["height"], "width": 2 * x["width"]} for x in inputs()])
    assert scaled[0]["instances"].image_size == (128, 192)


# -------------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_head_cannot_detect():
    with pytest.raises(Exception, match=r"there is no head 'atts', only roi, atss\. Did you mean 'atss'"):
        build_small(CO_DEFORMABLE, "model.auxiliary_heads.detect_with=atts")


def test_a_query_group_of_an_unknown_head_is_named():
    with pytest.raises(Exception, match=r"need the auxiliary head 'roi', but model.auxiliary_heads has atss"):
        build_small(CO_DEFORMABLE, "model.auxiliary_heads.roi=null")
    with pytest.raises(Exception, match=r"'roi', but model.auxiliary_heads is None"):
        build_small(CO_DEFORMABLE, "model.auxiliary_heads=null")


def test_heads_fit_any_number_of_levels_of_the_backbone():
    model = build_small(CO_DEFORMABLE, "model.backbone.num_levels=5")
    assert model.auxiliary_heads.strides == (8, 16, 32, 64, 128, 256)
    assert build_small(CO_DINO).auxiliary_heads.strides == (4, 8, 16, 32, 64, 128)


def test_a_head_for_another_number_of_levels_is_named():
    with pytest.raises(Exception, match=r"atss.num_levels is 4, but the pyramid has 5 levels.*num_levels=5"):
        build_small(CO_DEFORMABLE, "model.auxiliary_heads.atss.num_levels=4")


def test_strides_other_than_the_backbones_are_named():
    with pytest.raises(Exception, match=r"pyramid of strides \[4, 8, .*the backbone's maps have \[8, 16, 32, 64\]"):
        build_small(CO_DEFORMABLE, "model.auxiliary_heads.strides=[4,8,16,32]")


def test_strides_that_a_head_cannot_pool_from_are_named():
    with pytest.raises(ValueError, match=r"auxiliary_heads\.roi: .*got strides \[8, 16, 64, 128\]"):
        AuxiliaryHeads(
            adapter=DownsampledPyramid(embed_dim=8),
            num_decoder_layers=6,
            strides=(8, 16, 64),
            roi=FasterRCNNHead(embed_dim=8, num_classes=2, hidden_dims=(4, 4)),
        )


def test_a_container_without_heads_says_what_to_do():
    with pytest.raises(Exception, match=r"has no head: .*model.auxiliary_heads=null"):
        build_small(CO_DEFORMABLE, *ONLY_ATSS, "model.auxiliary_heads.atss=null")


def test_missing_masks_are_named_before_anything_is_computed():
    model = build_small(CO_DEFORMABLE)
    model.auxiliary_heads.roi.mask_branch = MaskBranch(embed_dim=32, num_classes=80, num_convs=1)
    model.backbone.forward = lambda images: pytest.fail("computed something")
    without = inputs()
    without[0]["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match=r"0.png: the auxiliary head 'roi' learns from instances.gt_masks, which are"):
        model(without)
