"""What names alone do not show: which of two tensors of one shape is which, label rows, patterns, second names."""

import pytest
import torch

from dinox.checkpoint import convert
from dinox.checkpoint.conversion.converting import read
from dinox.checkpoint.conversion.dino import COCO_IDS

from ..small_models import build_small

LAYER = "transformer.decoder.layers.1."
OUR_LAYER = "decoder.layers.1."


def name_in_dinox(name, source, *others):
    """``others``: names by which the detector is known."""
    tensor = torch.zeros(1)
    weights = {other: torch.ones(1) for other in others} | {name: tensor}
    return next(ours for ours, value in convert(weights, source).items() if value is tensor)


# ------------------------------------------------------------------------------------------------ DN-DETR's authors


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("sa_qcontent_proj", "self_attention.content_query"),
        ("sa_qpos_proj", "self_attention.position_query"),
        ("sa_kcontent_proj", "self_attention.content_key"),
        ("sa_kpos_proj", "self_attention.position_key"),
        ("sa_v_proj", "self_attention.value"),
        ("self_attn.out_proj", "self_attention.output"),
        ("norm1", "self_attention_norm"),
        ("ca_qcontent_proj", "cross_attention.content_query"),
        ("ca_qpos_proj", "cross_attention.position_query"),
        ("ca_kcontent_proj", "cross_attention.content_key"),
        ("ca_kpos_proj", "cross_attention.position_key"),
        ("ca_v_proj", "cross_attention.value"),
        ("ca_qpos_sine_proj", "cross_attention.place_query"),
        ("cross_attn.out_proj", "cross_attention.output"),
        ("ca_out_v_proj", "cross_attention.output"),
        ("lvl_attn", "cross_attention.level_weights"),
        ("norm2", "cross_attention_norm"),
        ("norm3", "feed_forward_norm"),
    ],
)
def test_the_dense_decoder_of_dn_detr(theirs, ours):
    assert name_in_dinox(f"{LAYER}{theirs}.weight", "dn-detr") == f"{OUR_LAYER}{ours}.weight"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("norm1", "cross_attention_norm"), ("norm2", "self_attention_norm"), ("norm3", "feed_forward_norm")],
)
def test_norms_of_the_deformable_decoder_of_dn_detr_follow_the_other_attention(theirs, ours):
    known = [LAYER + "self_attn.in_proj_weight"]
    assert name_in_dinox(f"{LAYER}{theirs}.weight", "dn-detr", *known) == f"{OUR_LAYER}{ours}.weight"


def test_the_scale_of_dn_detr_is_of_places_or_of_positions():
    name = "transformer.decoder.query_scale.layers.0.weight"
    assert name_in_dinox(name, "dn-detr", LAYER + "sa_v_proj.bias") == "decoder.place_scale.layers.0.weight"
    assert name_in_dinox(name, "dn-detr", LAYER + "self_attn.in_proj_bias") == "decoder.position_scale.layers.0.weight"


DENSE, DEFORMABLE = "query_groups.label_embedding.table.weight", "query_groups.denoising.label_embedding.table.weight"


def label_rows(num_rows, *, deformable, **options):
    """Ours; theirs hold their row numbers, and ``num_rows`` in the one of the unknown class."""
    rows = torch.arange(num_rows + 1.0)
    weights = {"label_enc.weight": rows[:, None]}
    if deformable:
        weights |= {"class_embed.0.bias": rows[:num_rows], LAYER + "self_attn.in_proj_bias": torch.zeros(3)}
    else:
        weights |= {"class_embed.bias": rows[:num_rows], LAYER + "sa_v_proj.bias": torch.zeros(3)}
    converted = convert(weights, "dn-detr", **options)
    labels = converted[DEFORMABLE if deformable else DENSE].flatten().tolist()
    assert labels[:-1] == converted["heads.class_heads.0.bias"].tolist()
    return labels


@pytest.mark.parametrize("deformable", [False, True], ids=["dense", "deformable"])
def test_the_unknown_class_stays_the_last_label_whatever_rows_are_picked(deformable):
    assert label_rows(91, deformable=deformable) == [*COCO_IDS, 91]
    assert label_rows(7, deformable=deformable) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert label_rows(7, deformable=deformable, category_ids=[5, 1]) == [5, 1, 7]
    with pytest.raises(ValueError, match="rows 0 to 6, and none for the category id 7"):
        label_rows(7, deformable=deformable, category_ids=[1, 7])


def test_settings_of_dn_detrs_authors():
    """Their dense decoders mask padding, which those of detrex do not."""
    dense, deformable = (
        read({name: torch.zeros(1)}, "dn-detr").settings
        for name in (LAYER + "sa_v_proj.bias", LAYER + "self_attn.in_proj_bias")
    )
    prefix = "model.memory_builder.position_embedding."
    position = {prefix + "temperature": 20, prefix + "offset": 0.0}
    assert dense == position | {"model.decoder.mask_memory": True}
    assert deformable == position


@pytest.mark.parametrize(
    ("source", "theirs"), [("dn-detr", "refpoint_embed.weight"), ("detrex", "anchor_box_embed.weight")]
)
@pytest.mark.parametrize("patterns", ["patterns.weight", "transformer.patterns.weight"])
def test_with_patterns_anchor_boxes_are_those_that_are_repeated(source, theirs, patterns):
    known = "transformer.decoder.ref_anchor_head.layers.0.bias"
    assert name_in_dinox(theirs, source, known) == "query_groups.matching.anchors.logits"
    assert name_in_dinox(theirs, source, known, patterns) == "query_groups.matching.anchors.anchors.logits"
    assert name_in_dinox(patterns, source, known) == "query_groups.matching.content.patterns.weight"


# ------------------------------------------------------------------------------------------------------------- H-DETR

QUERY_TABLES = {"h-detr": "query_embed.weight", "detrex": "query_embedding.weight"}


def content_queries(source, num_rows):
    """Row numbers of the content queries of every group."""
    rows = torch.arange(num_rows * 2.0).view(-1, 2) // 2
    weights = {QUERY_TABLES[source]: rows, "transformer.pos_trans.weight": torch.zeros(4, 4)}
    converted = convert(weights, source)
    assert converted.pop("query_groups.anchor_embedding.projection.weight") is weights["transformer.pos_trans.weight"]
    return {name.split(".")[1]: tensor[:, 0].int().tolist() for name, tensor in converted.items()}


@pytest.mark.parametrize("source", QUERY_TABLES)
@pytest.mark.parametrize("matching", [300, 900])
def test_the_last_1500_content_queries_are_the_one_to_many_ones(source, matching):
    assert content_queries(source, matching + 1500) == {
        "matching": list(range(matching)),
        "one_to_many": list(range(matching, matching + 1500)),
    }
    assert content_queries(source, matching) == {"matching": list(range(matching))}


@pytest.mark.parametrize("source", QUERY_TABLES)
def test_without_content_queries_the_embedding_makes_them(source):
    assert name_in_dinox("transformer.pos_trans.bias", source) == "query_groups.matching.projection.bias"
    known = [QUERY_TABLES[source], "transformer.pos_trans.weight"]
    assert name_in_dinox("transformer.pos_trans_norm.bias", source, *known) == "query_groups.anchor_embedding.norm.bias"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("norm1", "cross_attention_norm"), ("norm2", "self_attention_norm"), ("norm3", "feed_forward_norm")],
)
def test_norms_of_h_detrs_decoder_follow_the_other_attention(theirs, ours):
    assert name_in_dinox(f"{LAYER}{theirs}.weight", "h-detr") == f"{OUR_LAYER}{ours}.weight"


def test_the_encoders_row_0_is_any_object_and_stays_where_proposals_are_ranked_by_it():
    """Of 91 rows of the decoder's heads, those of the COCO ids stay; id 0 is none of them."""
    weights = {f"class_embed.{layer}.bias": torch.arange(91.0) for layer in (0, 1, 2)}
    converted = convert(weights | {LAYER + "linear1.bias": torch.zeros(3)}, "h-detr")
    assert converted["heads.class_heads.0.bias"].tolist() == list(COCO_IDS)
    assert converted["query_selection.class_head.bias"].tolist() == [0, *COCO_IDS[1:]]


def test_h_detr_goes_to_detrex_and_comes_back():
    weights = build_small("h_detr/h_deformable_detr_r50_12ep").state_dict()
    theirs = convert(weights, "dinox", "detrex")
    assert len(theirs["query_embedding.weight"]) == 20 + 1500
    conversion = read(theirs, "detrex")
    assert conversion.settings[LOOK_FORWARD] == "twice"
    assert conversion.weights.keys() == weights.keys()
    assert all(torch.equal(conversion.weights[name], tensor) for name, tensor in weights.items())


def test_detrex_has_no_counterpart_of_another_number_of_one_to_many_queries():
    weights = build_small(
        "h_detr/h_deformable_detr_r50_12ep", "model.query_groups.one_to_many.content.num_queries=30"
    ).state_dict()
    with pytest.raises(ValueError, match=r"has no counterpart of 1 of .*query_groups\.one_to_many\.content"):
        convert(weights, "dinox", "detrex")


# ------------------------------------------------------------------------------------------------------------- detrex


def test_first_come_the_positions_then_the_content_of_deformable_detrs_queries():
    converted = convert({"query_embedding.weight": torch.arange(8.0).view(2, 4)}, "detrex")
    matching = {name.removeprefix("query_groups.matching."): value.tolist() for name, value in converted.items()}
    assert matching == {"anchors.embedding.weight": [[0, 1], [4, 5]], "content.embedding.weight": [[2, 3], [6, 7]]}


def test_norms_of_anchor_detrs_decoder():
    norms = {f"transformer.decoder_layers.0.{norm}.weight": torch.ones(1) * i for i, norm in enumerate(ANCHOR_NORMS)}
    ours = {name.split(".")[3]: int(value) for name, value in convert(norms, "detrex").items()}
    assert ours == {"cross_attention_norm": 0, "self_attention_norm": 1, "feed_forward_norm": 2}


ANCHOR_NORMS = ["norm1", "norm2", "ffn.norm2"]

REFINING = "deformable_detr/deformable_detr_r50_with_box_refinement_50ep"
LOOK_FORWARD = "model.decoder.look_forward"


@pytest.mark.parametrize("tied_class_heads", [False, True])
def test_box_refinement_shows_in_second_names_of_the_box_heads(tied_class_heads):
    weights = build_small(REFINING).state_dict()
    if tied_class_heads:
        weights |= {name: weights[name.replace(f"_heads.{i}.", "_heads.0.")] for i, name in class_heads(weights)}
    theirs = convert(weights, "dinox", "detrex")
    second = {name for name in theirs if name.startswith("transformer.decoder.bbox_embed.")}
    assert len(second) == 3 * 6 and not [name for name in theirs if "decoder.class_embed" in name]
    conversion = read(theirs, "detrex")
    assert conversion.settings[LOOK_FORWARD] == "once"
    assert conversion.weights.keys() == weights.keys()
    assert all(torch.equal(conversion.weights[name], tensor) for name, tensor in weights.items())


def class_heads(weights):
    return [(int(name.split(".")[2]), name) for name in weights if name.startswith("heads.class_heads.")]


def test_without_refinement_there_are_no_second_names():
    theirs = convert(build_small("deformable_detr/deformable_detr_r50_50ep").state_dict(), "dinox", "detrex")
    assert not [name for name in theirs if name.startswith("transformer.decoder.bbox_embed.")]
    assert read(theirs, "detrex").settings[LOOK_FORWARD] is None


@pytest.mark.parametrize(
    "config", ["dab_detr/dab_deformable_detr_r50_two_stage_50ep", "dab_detr/dab_detr_r50_3patterns_50ep"]
)
def test_detectors_without_a_published_checkpoint_go_to_detrex_and_come_back(config):
    weights = build_small(config).state_dict()
    back = convert(convert(weights, "dinox", "detrex"), "detrex")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_heads_of_two_stage_dab_deformable_detr_have_second_names_all_of_them():
    theirs = convert(build_small("dab_detr/dab_deformable_detr_r50_two_stage_50ep").state_dict(), "dinox", "detrex")
    assert {f"transformer.decoder.class_embed.{i}.bias" for i in range(4)} < theirs.keys()
    assert {f"transformer.decoder.bbox_embed.{i}.layers.2.bias" for i in range(4)} < theirs.keys()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("dn_detr/dn_deformable_encoder_detr_r50_50ep", r"detrex's DAB-DETR has no counterpart of .*convs\.1"),
        ("dn_detr/dn_vanilla_detr_r50_300ep", r"detrex's DETR has no counterpart of .*query_groups\.denoising"),
    ],
)
def test_what_detrex_does_not_have_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        convert(build_small(config).state_dict(), "dinox", "detrex")
