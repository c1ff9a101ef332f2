"""Files of pre-trained networks, as their authors publish them, start detectors without a conversion."""

import re

import pytest
import timm
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from dinox.checkpoint import convert, load_weights
from dinox.checkpoint.conversion import guess_source
from dinox.checkpoint.conversion.comparison import compare_weights
from dinox.checkpoint.conversion.detrex import dino_table as detrex_table
from dinox.checkpoint.conversion.dino import dino_table
from dinox.checkpoint.conversion.rules import to_ours
from dinox.checkpoint.reading import CheckpointError
from dinox.config import load_config
from dinox.model_zoo import get_config
from dinox.modeling import Swin, TimmBackbone, build_eva02, build_vit
from tests.small_models import SMALL_TRANSFORMER, build_small

SWIN_CONFIG = "dino/dino_swin_large_4scale_12ep"
EVA_CONFIG = "dino/dino_eva02_large_4scale_12ep"
EVA_WITHOUT_NECK = "co_detr/co_dino_eva02_large_5scale_objects365_26ep"
CONVNEXT_CONFIG = "dino/dino_convnext_large_4scale_12ep"
SWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 3}
PREFIX = "backbone.bottom_up."
RESIZED = "relative_position_bias_table"


def timm_swin(**options):
    torch.manual_seed(1)
    network = SwinTransformer(num_classes=5, **{**SWIN, **options})
    for parameter in network.parameters():
        parameter.data.normal_()
    return network.state_dict()


def microsoft_swin(**options):
    """Patch merging counted to the stage before, its classifier, and the constants that its files hold."""
    weights = {}
    for name, tensor in timm_swin(**options).items():
        merging = re.fullmatch(r"layers\.(\d)\.downsample\.(.*)", name)
        if merging:
            name = f"layers.{int(merging[1]) - 1}.downsample.{merging[2]}"
        weights[name.replace("head.fc.", "head.")] = tensor
    window = options.get("window_size", SWIN["window_size"])
    for block in ("layers.0.blocks.0", "layers.2.blocks.1"):
        weights[f"{block}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.long)
    weights["layers.2.blocks.1.attn_mask"] = torch.zeros(4, window**2, window**2)
    return weights


def detectron2_swin(**options):
    weights = {
        f"backbone.bottom_up.{k}": v for k, v in microsoft_swin(**options).items() if k[:4] not in ("head", "norm")
    }
    for stage in (1, 2, 3):
        for kind in ("weight", "bias"):
            weights[f"backbone.bottom_up.norm{stage}.{kind}"] = torch.randn(SWIN["embed_dim"] * 2**stage)
    return weights


def detrex_swin(**options):
    return {name.replace("backbone.bottom_up.", "backbone."): w for name, w in detectron2_swin(**options).items()}


STYLES = {"timm": timm_swin, "microsoft": microsoft_swin, "detectron2": detectron2_swin, "detrex": detrex_swin}
styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)


def loaded(tmp_path, config, weights, *overrides, wrapped=False, name="weights.pth"):
    torch.save({"model": weights} if wrapped else weights, tmp_path / name)
    model = build_small(config, *overrides, seed=7)
    return model.state_dict(), load_weights(model, str(tmp_path / name), purpose="train")


@styles
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_tensor_of_a_swin_file_is_where_timm_has_it(tmp_path, style, wrapped):
    ours, report = loaded(tmp_path, SWIN_CONFIG, style(), wrapped=wrapped)
    for name, tensor in timm_swin().items():
        if not name.startswith(("head", "norm")):
            assert torch.equal(ours[f"{PREFIX}network.{name}"], tensor), name
    assert report.is_backbone and not report.unexpected and not report.mismatched
    missing = {name for name in report.missing if name.startswith(PREFIX)}
    norms = {f"{PREFIX}stage_norms.{stage}.{kind}" for stage in ("res3", "res4", "res5") for kind in ("weight", "bias")}
    assert missing == (set() if style in (detectron2_swin, detrex_swin) else norms)


@pytest.mark.parametrize("style", [detectron2_swin, detrex_swin])
def test_norms_of_outputs_are_those_of_the_same_stride(tmp_path, style):
    torch.manual_seed(3)
    weights = style()
    ours, _ = loaded(tmp_path, SWIN_CONFIG, weights)
    prefix = next(name for name in weights).partition("patch_embed")[0]
    for stage in (1, 2, 3):
        assert torch.equal(ours[f"{PREFIX}stage_norms.res{stage + 2}.weight"], weights[f"{prefix}norm{stage}.weight"])


def test_a_map_of_an_output_that_is_not_used_is_named(tmp_path):
    weights = detectron2_swin() | {f"backbone.bottom_up.norm0.{kind}": torch.ones(8) for kind in ("weight", "bias")}
    _, report = loaded(tmp_path, SWIN_CONFIG, weights)
    assert sorted(report.unexpected) == [f"{PREFIX}stage_norms.res2.{kind}" for kind in ("bias", "weight")]


@styles
def test_position_biases_of_other_windows_are_resized(tmp_path, style):
    ours, report = loaded(tmp_path, SWIN_CONFIG, style(window_size=4))
    source = timm_swin(window_size=4)
    for name, tensor in source.items():
        if name.startswith(("head", "norm")):
            continue
        got = ours[f"{PREFIX}network.{name}"]
        if RESIZED not in name:
            assert torch.equal(got, tensor), name
            continue
        assert got.shape == (25, tensor.shape[1])
        torch.testing.assert_close(got[12], tensor[24])  # distance 0 stays in the middle, where nothing is mixed
    assert not report.mismatched


def test_a_network_of_another_width_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight: \(16, 3, 4, 4\) in the file"):
        loaded(tmp_path, SWIN_CONFIG, microsoft_swin(embed_dim=16))


def test_another_kind_of_network_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="0 of the model's"):
        loaded(tmp_path, SWIN_CONFIG, timm.create_model("resnet18", pretrained=False).state_dict())


def test_a_checkpoint_of_ours_is_loaded_as_it_is(tmp_path):
    weights = build_small(SWIN_CONFIG, seed=3).state_dict()
    ours, report = loaded(tmp_path, SWIN_CONFIG, weights, wrapped=True)
    assert report.is_complete and all(torch.equal(ours[name], tensor) for name, tensor in weights.items())


def test_what_was_left_out_and_resized_is_said(tmp_path, caplog):
    with caplog.at_level("INFO", logger="dinox"):
        loaded(tmp_path, SWIN_CONFIG, microsoft_swin(window_size=4))
    assert "not needed (the classifier): 4 tensors, such as norm.weight" in caplog.text
    assert "layers.0.blocks.0.attn.relative_position_bias_table from (49, 1) to (25, 1)" in caplog.text


def eva02(**options):
    torch.manual_seed(1)
    network = Eva(
        **{
            "img_size": 256,
            "patch_size": 16,
            "embed_dim": 16,
            "depth": 3,
            "num_heads": 2,
            "mlp_ratio": 8 / 3,
            "qkv_fused": False,
            "swiglu_mlp": True,
            "scale_mlp": True,
            "use_rot_pos_emb": True,
            "ref_feat_shape": (16, 16),
            **options,
        }
    )
    for parameter in network.parameters():
        parameter.data.normal_()
    return network.state_dict()


def compare_vit(ours, theirs, prefix):
    for name, tensor in theirs.items():
        if name == "pos_embed":
            tensor = tensor[:, 1:]  # the first is the class token's
        if not name.startswith(("head", "norm", "fc_norm", "cls_token")):
            assert torch.equal(ours[f"{prefix}network.{name}"], tensor), name


@pytest.mark.parametrize(
    "config, prefix, side", [(EVA_CONFIG, PREFIX + "bottom_up.", 256), (EVA_WITHOUT_NECK, PREFIX, 512)]
)
def test_every_tensor_of_an_eva02_file_is_where_timm_has_it(tmp_path, config, prefix, side):
    weights = eva02(img_size=side)
    ours, report = loaded(tmp_path, config, weights)
    compare_vit(ours, weights, prefix)
    assert report.is_backbone and not report.unexpected
    assert not any(name.startswith(prefix) for name in report.missing)


def test_patches_and_positions_of_another_pretraining_are_resized(tmp_path):
    weights = eva02(patch_size=14, img_size=14 * 8)
    # A patch embedding that sums its pixels with one weight is the same on larger patches of the same total.
    weights["patch_embed.proj.weight"] = torch.ones(16, 3, 14, 14)
    weights["pos_embed"] = torch.ones_like(weights["pos_embed"]) * 3
    ours, report = loaded(tmp_path, EVA_CONFIG, weights)
    prefix = PREFIX + "bottom_up.network."
    assert ours[prefix + "patch_embed.proj.weight"].shape == (16, 3, 16, 16) and not report.mismatched
    image = torch.full((1, 3, 1, 1), 0.5)
    response = (ours[prefix + "patch_embed.proj.weight"] * image).sum((1, 2, 3))
    torch.testing.assert_close(response, torch.full((16,), 0.5 * 3 * 14 * 14), rtol=0.01, atol=0)  # of a flat patch
    assert ours[prefix + "pos_embed"].shape == (1, 256, 16)
    torch.testing.assert_close(ours[prefix + "pos_embed"], torch.full((1, 256, 16), 3.0))  # a constant stays one


def test_every_tensor_of_a_timm_convnext_file_is_where_timm_has_it(tmp_path):
    torch.manual_seed(1)
    weights = timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=3).state_dict()
    ours, report = loaded(tmp_path, CONVNEXT_CONFIG, weights)
    network = {name.removeprefix(PREFIX + "network."): w for name, w in ours.items() if ".network." in name}
    assert report.is_backbone and not report.unexpected
    for name, tensor in weights.items():
        if not name.startswith("head"):
            assert torch.equal(network[re.sub(r"^(stem|stages)\.(\d)", r"\1_\2", name)], tensor), name


def test_a_timm_resnet_file_fills_timms_resnet(tmp_path):
    cfg = load_config("dino/dino_r50_4scale_12ep", SMALL_TRANSFORMER)
    cfg.model.backbone.bottom_up = L(TimmBackbone)(model_name="resnet18", norms="frozen")
    model = instantiate(cfg.model)
    weights = timm.create_model("resnet18", pretrained=False).state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    report = load_weights(model, str(tmp_path / "resnet18.pth"), purpose="train")
    assert report.is_backbone and not report.unexpected
    ours = model.state_dict()
    for name, tensor in weights.items():
        if not name.startswith("fc") and "num_batches" not in name:
            assert torch.equal(ours[f"{PREFIX}network.{name}"], tensor), name


def test_a_converted_file_needs_no_norms_of_outputs():
    converted = convert(microsoft_swin(), "microsoft")
    assert compare_weights(build_small(SWIN_CONFIG), converted, backbone_only=True).is_exact
    converted = convert(eva02(), "timm")
    assert compare_weights(build_small(EVA_CONFIG), converted, backbone_only=True).is_exact


@pytest.mark.parametrize("source", ["timm", "microsoft", "detectron2"])
def test_swin_files_are_recognised_and_converted(source):
    weights = STYLES[source]()
    assert guess_source(weights) == source
    converted = convert(weights, source)
    model = build_small(SWIN_CONFIG).state_dict()
    assert converted.keys() <= model.keys()
    assert all(converted[name].shape == model[name].shape for name in converted)


def test_vit_files_of_timm_are_recognised_and_converted():
    torch.manual_seed(1)
    network = VisionTransformer(
        img_size=48, patch_size=16, embed_dim=16, depth=2, num_heads=2, init_values=0.1, num_classes=3
    )
    weights = network.state_dict()
    assert guess_source(weights) == "timm"
    converted = convert(weights, "timm")
    assert converted["backbone.bottom_up.bottom_up.network.pos_embed"].shape == (1, 9, 16)
    assert {name.rpartition("network.")[2] for name in converted} == {
        name for name in weights if not name.startswith(("head", "norm", "cls_token"))
    }


@pytest.mark.parametrize("source, prefix", [("detrex", "backbone."), ("dino", "backbone.0.")])
def test_swin_in_detectors_of_others_is_converted(source, prefix):
    """A DINO detector of theirs, with the Swin part in place of its ResNet."""
    table = {"detrex": detrex_table, "dino": dino_table}[source]
    weights = {prefix + name.removeprefix("backbone.bottom_up."): w for name, w in detectron2_swin().items()}
    translation = to_ours(weights, table(weights))
    assert not translation.unknown
    model = build_small(SWIN_CONFIG).state_dict()
    assert translation.weights.keys() == {name for name in model if name.startswith(PREFIX)}


@pytest.mark.parametrize(
    "name, build",
    [
        ("swin_large_patch4_window12_384", lambda: instantiate(get_config(SWIN_CONFIG).model.backbone.bottom_up)),
        ("swin_tiny_patch4_window7_224", Swin),
        ("eva02_large_patch14_224", lambda: build_eva02(patch_size=14)),
        ("eva02_tiny_patch14_336", lambda: tiny_eva02()),
        ("vit_base_patch16_224", build_vit),
    ],
)
def test_published_networks_of_timm_have_the_shapes_of_ours(name, build):
    """On the meta device: no memory, and no weights."""
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, pretrained=False).state_dict(), build().state_dict()
    network = {key.rpartition("network.")[2]: w.shape for key, w in convert(theirs, "timm").items()}
    assert network == {key.removeprefix("network."): w.shape for key, w in ours.items() if "stage_norms" not in key}


def tiny_eva02():
    options = {"embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_norm": False, "fused_qkv": True}
    return build_eva02(**options, patch_size=14, position_grid=24)
