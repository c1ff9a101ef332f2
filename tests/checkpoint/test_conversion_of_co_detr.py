"""Co-DETR's checkpoints: what becomes of every tensor, and of the order of numbers in it."""

import pytest
import timm
import torch
from detectron2.config import instantiate
from torch.nn import functional as F

from dinox.checkpoint import convert
from dinox.checkpoint.conversion import guess_source
from dinox.checkpoint.conversion.converting import read
from dinox.config import load_config
from dinox.modeling import drop_training_parts

from ..parity.golden import fill, load_json
from ..small_models import build_small
from .test_conversion import shapes

CO_DINO, CO_DEFORMABLE = "co_detr/co_dino_r50_5scale_12ep", "co_detr/co_deformable_detr_r50_12ep"
WITH_MASKS = (
    "model.auxiliary_heads.roi.mask_branch={_target_: dinox.modeling.MaskBranch, embed_dim: 256, num_classes: 80}"
)
PUBLISHED = {
    "codetr_co_dino_5scale_r50": (CO_DINO, []),
    "codetr_co_deformable_detr_r50": (CO_DEFORMABLE, []),
    "codetr_co_deformable_detr_mask_r50": (CO_DEFORMABLE, [WITH_MASKS]),
}
"""Recorded names of a checkpoint -> the config that it fills."""
TRANSFORMER = "query_head.transformer."
COUNTER = "num_batches_tracked"


def published(keys, make=lambda key, shape: torch.empty(shape, device="meta")):
    return {key: make(key, shape) for key, shape in load_json("keys", keys)["entries"].items()}


def model_of(config, overrides):
    with torch.device("meta"):
        return instantiate(load_config(config, overrides).model)


@pytest.mark.parametrize(("keys", "config", "overrides"), [(keys, *config) for keys, config in PUBLISHED.items()])
def test_published_checkpoints_fill_the_model_exactly_with_its_training_parts_and_without(keys, config, overrides):
    weights, model = published(keys), model_of(config, overrides)
    assert shapes(convert(weights, "co-detr")) == shapes(model.state_dict())
    drop_training_parts(model)
    assert shapes(convert(weights, "co-detr", training_parts="drop")) == shapes(model.state_dict())


@pytest.mark.parametrize("keys", PUBLISHED)
def test_every_name_is_used_or_explained(keys):
    weights = published(keys)
    kept, dropped = (read(weights, "co-detr", training_parts=choice).skipped for choice in ("keep", "drop"))
    assert set(kept) == {name for name in weights if name.endswith(COUNTER)}
    assert set(kept.values()) == {"counters of frozen batch norms"}
    training = {name for name, why in dropped.items() if why == "for training only"}
    assert training == dropped.keys() - kept.keys()
    parts = ("rpn_head.", "roi_head.", "bbox_head.", "query_head.downsample.", *(TRANSFORMER + x for x in MAKERS))
    assert training == {name for name in weights if name.startswith(parts)}


MAKERS = ("aux_pos_trans", "pos_feats_", "head_pos_embed")


@pytest.mark.parametrize("keys", PUBLISHED)
def test_the_source_shows_in_the_names(keys):
    assert guess_source(published(keys)) == "co-detr"


@pytest.mark.parametrize("keys", PUBLISHED)
def test_to_dinox_and_back_gives_every_tensor(keys):
    weights = published(keys, make=fill)
    back = convert(convert(weights, "co-detr"), "dinox", "co-detr")
    assert back.keys() == {name for name in weights if not name.endswith(COUNTER)}
    assert all(torch.equal(weights[name], tensor) for name, tensor in back.items())


def test_without_training_parts_the_way_back_gives_what_detection_needs():
    weights = published("codetr_co_dino_5scale_r50", make=lambda key, shape: torch.zeros(()).expand(shape))
    ours = convert(weights, "co-detr", training_parts="drop")
    back = convert(ours, "dinox", "co-detr")
    assert len(back) == len(ours) - 5  # biases of the neck
    assert all(back[name] is weights[name] for name in back)


def test_settings_are_those_of_the_two_detectors():
    prefix = "model.memory_builder.position_embedding."
    twice = {"model.decoder.look_forward": "twice"}
    dino, deformable = (read(published(keys), "co-detr").settings for keys in list(PUBLISHED)[:2])
    assert dino == {prefix + "temperature": 20, prefix + "offset": 0.0} | twice
    assert deformable == {prefix + "temperature": 10000, prefix + "offset": -0.5} | twice


def name_in_dinox(name, *others):
    """``others``: names by which the detector is known."""
    tensor = torch.zeros(1)
    converted = convert({other: torch.ones(1) for other in others} | {name: tensor}, "co-detr")
    return next(ours for ours, value in converted.items() if value is tensor)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (TRANSFORMER + "decoder.layers.1.norms.0.bias", "decoder.layers.1.self_attention_norm.bias"),
        (TRANSFORMER + "decoder.layers.1.norms.1.bias", "decoder.layers.1.cross_attention_norm.bias"),
        (TRANSFORMER + "decoder.ref_point_head.2.weight", "decoder.position_head.layers.1.weight"),
        ("query_head.cls_branches.1.bias", "heads.class_heads.1.bias"),
        ("query_head.cls_branches.2.bias", "query_selection.class_head.bias"),
        ("query_head.reg_branches.1.2.bias", "heads.box_heads.1.layers.1.bias"),
        ("query_head.reg_branches.2.4.bias", "query_selection.box_head.layers.2.bias"),
        ("bbox_head.0.reg_convs.0.conv.weight", "auxiliary_heads.atss.branches.box_tower.0.conv.weight"),
        ("bbox_head.0.scales.3.scale", "auxiliary_heads.atss.branches.level_scales.factors.3"),
        ("roi_head.0.mask_head.convs.3.conv.bias", "auxiliary_heads.roi.mask_branch.head.mask_fcn4.bias"),
    ],
)
def test_names_of_a_detector_with_two_decoder_layers(theirs, ours):
    assert name_in_dinox(theirs, TRANSFORMER + "decoder.layers.1.ffns.0.layers.1.bias") == ours


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        (["roi_head.0.bbox_head.fc_cls.bias", "bbox_head.0.atss_cls.bias"], ["roi", "atss"]),
        (["bbox_head.0.atss_cls.bias"], ["atss"]),
        (["bbox_head.0.atss_cls.bias", "bbox_head.1.atss_cls.bias"], ["atss", "second"]),
        ([], ["roi", "atss"]),
    ],
)
def test_positive_queries_are_numbered_as_the_heads_are_that_exist(heads, names):
    for number, name in enumerate(names):
        ours = name_in_dinox(f"{TRANSFORMER}aux_pos_trans.{number}.bias", *heads)
        assert ours == f"query_groups.positive_{name}.embedding.boxes.projection.bias"


def test_copies_beside_averaged_weights_are_left_out():
    """mmdetection saves averages under the plain names, and the weights of the last step as buffers."""
    name = TRANSFORMER + "enc_output.bias"
    conversion = read({name: torch.ones(2), "ema_" + name.replace(".", "_"): torch.zeros(2)}, "co-detr")
    assert {key: value.tolist() for key, value in conversion.weights.items()} == {
        "query_selection.projection.bias": [1, 1]
    }
    assert "the averages have the plain names" in conversion.skipped["ema_query_head_transformer_enc_output_bias"]


# ----------------------------------------------------------------------------------------------------- what is computed


def test_the_neck_computes_what_a_convolution_without_bias_and_a_norm_do():
    torch.manual_seed(0)
    weight, scale, shift = torch.randn(64, 16, 1, 1), torch.randn(64), torch.randn(64)
    theirs = {"neck.convs.0.conv.weight": weight, "neck.convs.0.gn.weight": scale, "neck.convs.0.gn.bias": shift}
    mapper = build_small(CO_DINO, "model.embed_dim=64").backbone.convs[0]  # two channels in each group
    torch.nn.init.normal_(mapper.conv.bias)
    converted = convert(theirs, "co-detr")
    mapper.load_state_dict({name.removeprefix("backbone.convs.0."): tensor for name, tensor in converted.items()})
    maps = torch.randn(1, 16, 4, 6)
    # The same operations in the same order.
    assert torch.equal(mapper(maps), F.group_norm(F.conv2d(maps, weight), 32, scale, shift))


def test_numbers_of_heads_become_vectors_that_add_the_same_to_all_channels():
    numbers = torch.tensor([[0.5], [-2.0]])
    weights = {TRANSFORMER + "head_pos_embed.weight": numbers, TRANSFORMER + "level_embeds": torch.zeros(4, 8)}
    converted = convert(weights, "co-detr")
    for name, number in (("roi", 0.5), ("atss", -2.0)):
        vector = converted[f"query_groups.positive_{name}.embedding.head_embedding.weight"]
        assert vector.tolist() == [number] * 8


def test_merged_cells_of_mmdetections_swin_are_those_of_its_unfolding():
    """Against torch's unfolding, which mmdetection merges cells with, in float64: only sums are in another order."""
    torch.manual_seed(0)
    channels = 3
    norm_weight, norm_bias = torch.randn(2, 4 * channels, dtype=torch.float64)
    reduction = torch.randn(2 * channels, 4 * channels, dtype=torch.float64)
    below = "backbone.stages.0.downsample."
    theirs = {below + "norm.weight": norm_weight, below + "norm.bias": norm_bias, below + "reduction.weight": reduction}
    ours = convert(theirs, "co-detr")
    maps = torch.randn(1, channels, 4, 6, dtype=torch.float64)
    unfolded = F.unfold(maps, kernel_size=2, stride=2).transpose(1, 2)  # (1, 6, 12)
    expected = F.layer_norm(unfolded, [4 * channels], norm_weight, norm_bias) @ reduction.T
    merging = timm.models.swin_transformer.PatchMerging(channels).double()
    prefix = "backbone.bottom_up.network.layers.1.downsample."
    merging.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in ours.items()})
    torch.testing.assert_close(merging(maps.permute(0, 2, 3, 1)).flatten(1, 2), expected, rtol=1e-12, atol=1e-12)


SWIN = (
    "model.backbone.bottom_up={_target_: dinox.modeling.Swin, embed_dim: 8, depths: [1, 1, 2, 1], "
    "num_heads: [1, 1, 2, 2], window_size: 3, out_features: [res2, res3, res4, res5]}"
)


@pytest.fixture(scope="module")
def with_swin():
    overrides = ["model.embed_dim=32", "model.num_queries=20", SWIN]
    overrides += [f"model.{part}.num_layers=1" for part in ("encoder", "decoder")]
    torch.manual_seed(0)
    return instantiate(load_config(CO_DINO, overrides).model).state_dict()


def in_mmdetections_words(name, tensor):
    """Of Swin's authors', and merged cells unfolded: written down apart from the rules."""
    if name.startswith("backbone.") and ".downsample." in name:
        tensor = torch.stack([tensor.chunk(4, dim=-1)[i] for i in (0, 2, 1, 3)], dim=-1).flatten(-2)
    for theirs, word in (
        ("patch_embed.proj.", "patch_embed.projection."),
        ("backbone.layers.", "backbone.stages."),
        (".attn.", ".attn.w_msa."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
    ):
        name = name.replace(theirs, word) if name.startswith("backbone.") else name
    return name, tensor


@pytest.mark.parametrize("naming", ["Microsoft's", "mmdetection's"])
def test_swin_has_two_kinds_of_names(with_swin, naming):
    theirs = convert(with_swin, "dinox", "co-detr")
    assert {f"backbone.layers.{x}.bias" for x in ("2.blocks.1.mlp.fc1", "0.downsample.norm")} < theirs.keys()
    if naming == "mmdetection's":
        theirs = dict(in_mmdetections_words(*item) for item in theirs.items())
        theirs["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(9, 9)
        assert "backbone.stages.2.blocks.1.ffn.layers.0.0.bias" in theirs
    back = convert(theirs, "co-detr")
    assert back.keys() == with_swin.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in with_swin.items())


# --------------------------------------------------------------------------------------------------------------- errors


def test_what_co_detr_has_no_name_for_is_an_error():
    weights = build_small(CO_DINO).state_dict()
    assert convert(weights, "dinox", "co-detr")  # biases of the neck start with 0
    weights["backbone.convs.1.conv.bias"][3] = 1
    with pytest.raises(ValueError, match=r"Co-DINO has no counterpart of 1 of .*backbone\.convs\.1\.conv\.bias"):
        convert(weights, "dinox", "co-detr")
    weights = build_small(CO_DEFORMABLE).state_dict()  # with random vectors
    with pytest.raises(ValueError, match=r"no counterpart of 2 of .*positive_roi\.embedding\.head_embedding\.weight"):
        convert(weights, "dinox", "co-detr")


def test_an_unknown_name_is_an_error_with_the_nearest_known_one():
    with pytest.raises(
        ValueError, match=r"names are not those of .*Did you mean 'query_head\.transformer\.query_embed"
    ):
        convert({TRANSFORMER + "query_embd.weight": torch.zeros(1)}, "co-detr")


@pytest.mark.parametrize(
    ("source", "choice", "message"),
    [
        ("co-detr", "skip", "expected one of keep, drop, got 'skip'"),
        ("detrex", "drop", "those of co-detr can be dropped"),
    ],
)
def test_training_parts_that_cannot_be_meant(source, choice, message):
    with pytest.raises(ValueError, match=f"training_parts: {message}"):
        convert({}, source, training_parts=choice)


# ------------------------------------------------------------------------------------------- what only training needs


HEADS = ("bbox_head.", "roi_head.", "rpn_head.")


def test_detection_needs_no_heads_whatever_is_left_of_them():
    """Without them, and with others than those of our configs: as without all that only training needs."""
    weights = published("codetr_co_dino_5scale_r50")
    expected = convert(weights, "co-detr", training_parts="drop").keys()
    cut = {name: tensor for name, tensor in weights.items() if not name.startswith(HEADS)}
    assert f"{TRANSFORMER}aux_pos_trans.1.weight" in cut
    assert convert(cut, "co-detr", training_parts="drop").keys() == expected
    more = cut | {name: torch.zeros(1) for name in ("bbox_head.3.new.weight", "roi_head.0.bbox_head.shared_convs.0.w")}
    conversion = read(more, "co-detr", training_parts="drop")
    assert conversion.weights.keys() == expected
    assert conversion.skipped["bbox_head.3.new.weight"] == "for training only"


def test_heads_that_cannot_be_kept_are_an_error_that_says_how_to_leave_them_out():
    weights = published("codetr_co_dino_5scale_r50")
    cut = {name: tensor for name, tensor in weights.items() if not name.startswith("bbox_head.")}
    with pytest.raises(ValueError, match=r"aux_pos_trans\.1.*Only training needs them.*--training-parts drop"):
        convert(cut, "co-detr")


def test_other_backbones_are_an_error_that_says_which_can_be_read():
    weights = published("codetr_co_dino_5scale_r50")
    vit = {name: tensor for name, tensor in weights.items() if not name.startswith("backbone.")}
    vit |= {f"backbone.blocks.{i}.attn.q_proj.weight": torch.zeros(1) for i in range(24)}
    assert guess_source(vit) == "co-detr"
    with pytest.raises(ValueError, match=r"24 of .* are not those of .*Of Co-DETR's backbones, ResNet and Swin can be"):
        convert(vit, "co-detr")
