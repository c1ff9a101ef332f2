"""Renaming: exact, complete, and back."""

import pytest
import torch
from detectron2.config import instantiate

from dinox.checkpoint import convert
from dinox.checkpoint.conversion import guess_source
from dinox.checkpoint.conversion.dino import COCO_IDS
from dinox.checkpoint.conversion.formats import FORMATS
from dinox.checkpoint.conversion.rules import to_theirs
from dinox.config import load_config

from ..parity.golden import fill, load_json
from ..small_models import build_small

DETREX = {
    "detrex_dino_r50_4scale_12ep": "dino/dino_r50_4scale_12ep",
    "detrex_dino_r50_5scale_12ep": "dino/dino_r50_5scale_12ep",
    "detrex_detr_r50_300ep": "detr/detr_r50_300ep",
    "detrex_conditional_detr_r50_50ep": "conditional_detr/conditional_detr_r50_50ep",
    "detrex_anchor_detr_r50_50ep": "anchor_detr/anchor_detr_r50_50ep",
    "detrex_dab_detr_r50_50ep": "dab_detr/dab_detr_r50_50ep",
    "detrex_dn_detr_r50_50ep": "dn_detr/dn_detr_r50_50ep",
    "detrex_deformable_detr_r50_50ep": "deformable_detr/deformable_detr_r50_50ep",
    "detrex_deformable_detr_r50_two_stage_50ep": "deformable_detr/deformable_detr_r50_two_stage_50ep",
    "detrex_dab_deformable_detr_r50_50ep": "dab_detr/dab_deformable_detr_r50_50ep",
    "detrex_dn_deformable_detr_r50_50ep": "dn_detr/dn_deformable_detr_r50_50ep",
    "detrex_h_deformable_detr_r50_two_stage_12ep": "h_detr/h_deformable_detr_r50_12ep",
}
"""Recorded names of a checkpoint -> the config that it fills."""

DINO = {
    "ideadino_dino_r50_4scale": "dino/dino_r50_4scale_12ep",
    "ideadino_dino_r50_5scale": "dino/dino_r50_5scale_12ep",
}
DN_DETR = {
    "ideadn_dn_dab_detr_r50": "dn_detr/dn_detr_r50_50ep",
    "ideadn_dn_dab_deformable_detr_r50_transformer_activation_relu": "dn_detr/dn_deformable_detr_r50_50ep",
    "ideadn_dn_dab_deformable_detr_deformable_encoder_only_r50": "dn_detr/dn_deformable_encoder_detr_r50_50ep",
}
STABLE_DINO = {"stabledino_r50_4scale": "stable_dino/stable_dino_r50_4scale_12ep"}
WRITTEN = [(keys, source) for source, lists in (("detrex", DETREX), ("stable-dino", STABLE_DINO)) for keys in lists]
H_DETR = {
    "hdetr_r50_two_stage_12ep": ("h_detr/h_deformable_detr_r50_12ep", []),
    "hdetr_repo_deformable_detr_r50_two_stage": (
        "deformable_detr/deformable_detr_r50_two_stage_50ep",
        ["model.encoder.feed_forward_dim=2048"],
    ),
}
CLASS_WEIGHTS = "criterion.empty_weight"
"""The one tensor of a checkpoint that has no counterpart: it is made anew."""


def published(keys, make=lambda key, shape: torch.empty(shape, device="meta")):
    """A published checkpoint's state dict; tensors that share their memory there are one here."""
    recorded = load_json("keys", keys)
    weights = {key: make(key, shape) for key, shape in recorded["entries"].items()}
    if CLASS_WEIGHTS in weights:
        weights[CLASS_WEIGHTS] = torch.tensor([1.0] * 80 + [0.1])
    for alias, key in recorded["shared_storage_alias_of"].items():
        weights[alias] = weights[key]
    return weights


def shapes(weights):
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def model_shapes(config, *overrides):
    with torch.device("meta"):
        return shapes(instantiate(load_config(config, overrides).model).state_dict())


@pytest.mark.parametrize(("keys", "config"), DETREX.items())
def test_published_detrex_checkpoints_fill_the_model_exactly(keys, config):
    separate = ["model.heads.shared=False"] if config.startswith("dino/") else []  # the others are as their configs say
    assert shapes(convert(published(keys), source="detrex")) == model_shapes(config, *separate)


@pytest.mark.parametrize(
    ("keys", "config", "source"),
    [
        *((*pair, "dino") for pair in DINO.items()),
        *((*pair, "dn-detr") for pair in DN_DETR.items()),
        *((*pair, "stable-dino") for pair in STABLE_DINO.items()),
    ],
)
def test_published_official_checkpoints_fill_the_model_exactly(keys, config, source):
    assert shapes(convert(published(keys), source=source)) == model_shapes(config)


@pytest.mark.parametrize(("keys", "config", "overrides"), [(keys, *config) for keys, config in H_DETR.items()])
def test_published_checkpoints_of_h_detr_fill_the_model_exactly(keys, config, overrides):
    assert shapes(convert(published(keys), source="h-detr")) == model_shapes(config, *overrides)


@pytest.mark.parametrize(("keys", "source"), WRITTEN)
def test_to_dinox_and_back_gives_every_tensor_under_every_name(keys, source):
    weights = published(keys, make=fill)
    back = convert(convert(weights, source), "dinox", source)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    for alias, key in load_json("keys", keys)["shared_storage_alias_of"].items():
        assert back[alias] is back[key]


@pytest.mark.parametrize("config", sorted(set(DETREX.values())))
def test_what_detrex_can_hold_has_one_format_there(config):
    with torch.device("meta"):
        weights = instantiate(load_config(config).model).state_dict()
    written = [entry for entry in FORMATS if entry.source == "detrex" and entry.write]
    unknown = [len(to_theirs(entry.write(weights), entry.table(entry.write(weights))).unknown) for entry in written]
    assert unknown.count(0) == 1


def test_shared_heads_become_one_head_for_each_layer_of_detrex():
    weights = build_small().state_dict()
    theirs = convert(weights, "dinox", "detrex")
    assert {f"class_embed.{i}.weight" for i in range(4)} == {
        name for name in theirs if name.startswith("class_embed.") and name.endswith("weight")
    }
    head = weights["heads.class_heads.0.weight"]
    assert all(torch.equal(theirs[f"transformer.decoder.class_embed.{i}.weight"], head) for i in range(3))


def test_detrex_cannot_be_given_what_it_has_no_name_for():
    model = build_small("dino/ablation_static_queries")
    with pytest.raises(ValueError, match=r"detrex's DINO has no counterpart of 1 of .*matching\.anchors\.logits"):
        convert(model.state_dict(), "dinox", "detrex")


def test_a_wrong_source_is_told_the_right_one():
    theirs = published("stabledino_r50_4scale")
    with pytest.raises(ValueError, match=r"All are names of .*Stable-DINO: the source is 'stable-dino'"):
        convert(theirs, "detrex")


def test_fused_memory_is_stable_dinos_alone():
    """A linear layer and a norm, which detrex's DINO has no names for."""
    published_names = {
        f"transformer.encoder.fusion_layer.{i}.{x}": torch.zeros(1) for i in (0, 1) for x in ("weight", "bias")
    }
    ours = convert(published_names, "stable-dino")
    assert set(ours) == {f"encoder.fusion.{part}.{x}" for part in ("projection", "norm") for x in ("weight", "bias")}
    assert convert(ours, "dinox", "stable-dino").keys() == published_names.keys()
    with pytest.raises(ValueError, match="no counterpart of 4 of"):
        convert(ours, "dinox", "detrex")


@pytest.mark.parametrize("name", ["dino", "dn-detr"])
def test_official_formats_are_not_written(name):
    with pytest.raises(ValueError, match=f"cannot write the format '{name}', only dinox, detrex"):
        convert({}, "dinox", name)


# ----------------------------------------------------------------------------------------------------- official DINO


def small_official(num_rows, *, layers=2, shared=True):
    """The tensors that depend on classes, in the authors' format; row r of every tensor is filled with r."""
    rows = torch.arange(num_rows + 1.0)

    def head(layer):
        return rows[:num_rows] + (0 if shared else 100 * layer)

    weights = {"transformer.enc_out_class_embed.bias": rows[:num_rows], "label_enc.weight": rows[:, None].expand(-1, 4)}
    for layer in range(layers):
        weights[f"transformer.decoder.layers.{layer}.linear1.bias"] = torch.zeros(3)
        weights[f"class_embed.{layer}.bias"] = weights[f"transformer.decoder.class_embed.{layer}.bias"] = head(layer)
    return weights


CLASS_TENSORS = [
    "heads.class_heads.0.bias",
    "query_selection.class_head.bias",
    "query_groups.denoising.label_embedding.table.weight",
]


def rows_of(converted, name):
    tensor = converted[name]
    return (tensor if tensor.dim() == 1 else tensor[:, 0]).tolist()


@pytest.mark.parametrize("name", CLASS_TENSORS)
def test_of_91_rows_those_of_the_coco_ids_stay_in_order(name):
    rows = rows_of(convert(small_official(91), "dino"), name)
    assert rows == list(COCO_IDS)
    assert len(rows) == 80 and rows[0] == 1 and rows[-1] == 90 and 12 not in rows


@pytest.mark.parametrize("name", CLASS_TENSORS)
def test_other_numbers_of_rows_are_classes_all_of_them(name):
    assert rows_of(convert(small_official(7), "dino"), name) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", CLASS_TENSORS)
def test_category_ids_choose_the_rows_and_their_order(name):
    assert rows_of(convert(small_official(7), "dino", category_ids=[5, 1, 2]), name) == [5, 1, 2]


def test_a_category_id_without_a_row_is_an_error():
    with pytest.raises(ValueError, match="rows 0 to 6, and none for the category id 7"):
        convert(small_official(7), "dino", category_ids=[1, 7])


def test_category_ids_are_for_rows_that_are_ids():
    with pytest.raises(ValueError, match="of dino, dn-detr, h-detr; the classes of detrex are numbered"):
        convert({"label_enc.weight": torch.zeros(3, 4)}, "detrex", category_ids=[1])


def test_equal_heads_of_all_layers_become_one_and_others_stay():
    shared, separate = (convert(small_official(7, shared=value), "dino") for value in (True, False))
    assert "heads.class_heads.1.bias" not in shared
    assert separate["heads.class_heads.1.bias"].tolist() == [100, 101, 102, 103, 104, 105, 106]


def test_norms_of_the_authors_decoder_follow_the_other_attention():
    norms = {f"transformer.decoder.layers.0.norm{i}.bias": torch.tensor([float(i)]) for i in (1, 2, 3)}
    ours = {name.split(".")[3]: tensor.item() for name, tensor in convert(norms, "dino").items()}
    assert ours == {"cross_attention_norm": 1, "self_attention_norm": 2, "feed_forward_norm": 3}


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("source", "unknown", "nearest"),
    [
        ("detrex", "transformer.encoder.layers.3.norms.0.wait", "transformer.encoder.layers.3.norms.0.weight"),
        ("detrex", "transformer.level_embed", "transformer.level_embeds"),
        ("dino", "transformer.level_embeds", "transformer.level_embed"),
        ("dino", "transformer.decoder.layers.5.self_attn.in_proj_wight", "layers.5.self_attn.in_proj_weight"),
        ("dn-detr", "transformer.decoder.layers.5.ca_qpos_sine_proj.wieght", "layers.5.ca_qpos_sine_proj.weight"),
        ("torchvision", "layer2.1.conv2.wieght", "layer2.1.conv2.weight"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_known_one(source, unknown, nearest):
    with pytest.raises(ValueError, match=rf"1 of 1 names are not those of .*{unknown}\. Did you mean .*{nearest}'"):
        convert({unknown: torch.zeros(1)}, source=source)


def test_a_second_name_of_another_tensor_is_an_error():
    weights = {"class_embed.0.bias": torch.zeros(3), "transformer.decoder.class_embed.0.bias": torch.ones(3)}
    with pytest.raises(ValueError, match=r"decoder\.class_embed\.0\.bias should be class_embed\.0\.bias .* differs"):
        convert(weights, "detrex")


@pytest.mark.parametrize(("name", "meant"), [("detrx", "detrex"), ("dndetr", "dn-detr"), ("dn_detr", "dn-detr")])
def test_an_unknown_source_is_an_error_with_a_suggestion(name, meant):
    with pytest.raises(ValueError, match=rf"unknown checkpoint source '{name}'.*Did you mean '{meant}'"):
        convert({}, source=name)


# -------------------------------------------------------------------------------------------------------------- guess

_SOURCES = {"detrex": DETREX, "stable-dino": STABLE_DINO, "dino": DINO, "dn-detr": DN_DETR, "h-detr": H_DETR}


@pytest.mark.parametrize(
    ("keys", "source"),
    [(keys, source) for source, lists in _SOURCES.items() for keys in lists],
)
def test_the_source_shows_in_the_names(keys, source):
    assert guess_source(published(keys)) == source


def test_own_names_are_known():
    assert guess_source(build_small().state_dict()) == "dinox"


def test_the_names_of_another_project_are_no_guess():
    with pytest.raises(ValueError, match=r"cannot tell whose weights these are.*dinox reads detrex, dino"):
        guess_source({f"model.layers.{i}.weight": torch.zeros(1) for i in range(9)})
