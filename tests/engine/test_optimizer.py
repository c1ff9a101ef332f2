import copy

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from dinox.engine import ClippedAdamW, get_optimizer_params
from dinox.modeling import PlainViT, Swin, TimmBackbone, build_eva02, build_vit
from tests.engine.conftest import TINY_CONFIG


class Wrapper(nn.Module):
    """A backbone around a pre-trained network, as FPN and ChannelMapper are."""

    def __init__(self):
        super().__init__()
        self.bottom_up = nn.Conv2d(3, 4, 1)
        self.convs = nn.Conv2d(4, 4, 1)


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.sampling_offsets = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


def rates(model, **options):
    """name -> (learning rate, weight decay)"""
    optimizer = ClippedAdamW(get_optimizer_params(model, lr=1.0, **options), weight_decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_the_backbone_learns_ten_times_slower():
    found = rates(Model(nn.Conv2d(3, 4, 1)))
    assert found["backbone.weight"] == (0.1, 0.5)
    assert found["sampling_offsets.bias"] == found["norm.weight"] == (1.0, 0.5)


def test_layers_around_a_pretrained_network_learn_at_full_rate():
    found = rates(Model(Wrapper()))
    assert found["backbone.bottom_up.weight"][0] == 0.1
    assert found["backbone.convs.weight"][0] == 1.0


def test_norm_layers_can_go_without_weight_decay():
    found = rates(Model(nn.BatchNorm2d(4)), norm_weight_decay=0.0)
    assert found["norm.weight"] == found["norm.bias"] == (1.0, 0.0)
    assert found["backbone.weight"] == (0.1, 0.0)
    assert found["sampling_offsets.weight"] == (1.0, 0.5)


def test_factors_by_name_override_the_backbones():
    found = rates(Model(Wrapper()), lr_factors={"sampling_offsets": 0.2, r"bottom_up\.bias": 0.3})
    assert found["sampling_offsets.weight"][0] == 0.2
    assert found["backbone.bottom_up.bias"][0] == 0.3
    assert found["backbone.bottom_up.weight"][0] == 0.1


def test_a_factor_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="'sampling_ofsets'"):
        get_optimizer_params(Model(Wrapper()), lr=1.0, lr_factors={"sampling_ofsets": 0.1})


def test_frozen_parameters_are_left_out_and_shared_ones_come_once():
    model = Model(nn.Conv2d(3, 4, 1))
    model.backbone.requires_grad_(False)
    model.again = model.norm
    groups = get_optimizer_params(model, lr=1.0, norm_weight_decay=0.0)
    assert sum(len(group["params"]) for group in groups) == 4
    assert len(groups) == 2


def parameters_with_gradients(scale=1.0):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 2))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn_like(parameter)
    return parameters


def test_step_clips_the_norm_of_all_gradients_together():
    ours, reference = parameters_with_gradients(), parameters_with_gradients()
    ClippedAdamW([{"params": [p]} for p in ours], lr=0.1, max_grad_norm=0.1).step()
    assert torch.nn.utils.clip_grad_norm_(reference, 0.1) > 0.1
    torch.optim.AdamW(reference, lr=0.1, weight_decay=1e-4).step()
    for parameter, expected in zip(ours, reference):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0)
    assert torch.cat([p.grad.flatten() for p in ours]).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_clipping_beforehand_is_not_repeated():
    parameters = parameters_with_gradients()
    optimizer = ClippedAdamW(parameters, lr=0.1)
    norm = optimizer.clip_gradients()
    before = copy.deepcopy([p.grad for p in parameters])
    optimizer.step()
    assert norm > 0.1
    for parameter, expected in zip(parameters, before):
        assert torch.equal(parameter.grad, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_unscales_before_clipping(fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # a scaler makes its scale on first use
    scaled, plain = parameters_with_gradients(scale=1024.0), parameters_with_gradients()
    scaler.step(ClippedAdamW(scaled, lr=0.1, fused=fused))
    ClippedAdamW(plain, lr=0.1, fused=fused).step()
    for parameter, expected in zip(scaled, plain):
        torch.testing.assert_close(parameter, expected)


def test_no_clipping_on_request():
    ours, reference = parameters_with_gradients(), parameters_with_gradients()
    ClippedAdamW(ours, lr=0.1, max_grad_norm=None).step()
    torch.optim.AdamW(reference, lr=0.1, weight_decay=1e-4).step()
    assert torch.equal(ours[0], reference[0])
    with pytest.raises(ValueError, match="max_grad_norm"):
        ClippedAdamW(ours, max_grad_norm=0.0)


def test_the_state_of_a_configs_optimizer_is_plain_tensors_and_numbers(tmp_path):
    cfg = LazyConfig.load(TINY_CONFIG)
    cfg.optimizer.params.model = instantiate(cfg.model)
    torch.save(instantiate(cfg.optimizer).state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    assert {group["betas"] for group in state["param_groups"]} == {(0.9, 0.999)}


SWIN = {"embed_dim": 4, "depths": (1, 2), "num_heads": (1, 1), "window_size": 2, "out_features": ("res2", "res3")}


class Neck(nn.Module):
    """As ChannelMapper and SimpleFeaturePyramid are."""

    def __init__(self, bottom_up):
        super().__init__()
        self.bottom_up = bottom_up
        self.convs = nn.Conv2d(4, 4, 1)


def test_earlier_blocks_of_swin_learn_slower_and_the_backbones_factor_stays():
    found = rates(Model(Neck(Swin(**SWIN))), layer_decay=0.5, backbone_lr_factor=0.1)
    network = "backbone.bottom_up.network."
    expected = {
        "backbone.bottom_up.stage_norms.res3.weight": 0.1,
        network + "layers.1.blocks.1.mlp.fc1.weight": 0.1 * 0.5,
        network + "layers.1.blocks.0.norm1.bias": 0.1 * 0.5**2,
        network + "layers.1.downsample.reduction.weight": 0.1 * 0.5**2,
        network + "layers.0.blocks.0.attn.qkv.weight": 0.1 * 0.5**3,
        network + "patch_embed.proj.weight": 0.1 * 0.5**4,
        "backbone.convs.weight": 1.0,
        "sampling_offsets.weight": 1.0,
    }
    assert {name: found[name][0] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("build", [build_vit, build_eva02])
def test_earlier_blocks_of_vision_transformers_learn_slower_inside_a_pyramid(build):
    vit = PlainViT(network=build(embed_dim=8, depth=2, num_heads=1, position_grid=2))
    model = Model(Neck(Neck(vit)))
    found = rates(model, layer_decay=0.5, backbone_lr_factor=1.0, no_weight_decay=["pos_embed"])
    network = "backbone.bottom_up.bottom_up.network."
    # ViTDet's: decay to the power of the number of blocks behind a parameter, plus one.
    assert found[network + "blocks.1.mlp.fc2.weight"] == (0.5, 0.5)
    assert found[network + "blocks.0.mlp.fc2.weight"] == (0.25, 0.5)
    assert found[network + "patch_embed.proj.weight"] == (0.125, 0.5)
    assert found[network + "pos_embed"] == (0.125, 0.0)
    assert found["backbone.bottom_up.convs.weight"] == found["backbone.convs.weight"] == (1.0, 0.5)


def test_stages_of_other_networks_are_their_layers():
    options = {"depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]}
    model = Model(Neck(TimmBackbone(model_name="convnext_tiny", options=options)))
    found = rates(model, layer_decay=0.5, backbone_lr_factor=1.0)
    network = "backbone.bottom_up.network."
    assert found[network + "stages_3.blocks.0.mlp.fc1.weight"][0] == 0.5
    assert found[network + "stages_0.blocks.0.mlp.fc1.weight"][0] == 0.5**4
    assert found[network + "stem_0.weight"][0] == 0.5**5


def test_a_factor_by_name_replaces_the_backbones_but_not_the_layers():
    found = rates(Model(Neck(Swin(**SWIN))), layer_decay=0.5, lr_factors={r"patch_embed\.norm": 1.0})
    assert found["backbone.bottom_up.network.patch_embed.norm.weight"][0] == 0.5**4
    assert found["backbone.bottom_up.network.patch_embed.proj.weight"][0] == pytest.approx(0.1 * 0.5**4)


def test_tables_of_positions_can_go_without_weight_decay():
    found = rates(Model(Neck(Swin(**SWIN))), no_weight_decay=["relative_position_bias_table"])
    undecayed = [name for name, (_, decay) in found.items() if decay == 0]
    assert len(undecayed) == 3 and all("relative_position_bias_table" in name for name in undecayed)
    with pytest.raises(ValueError, match=r"no_weight_decay: no trainable parameter's name matches 'pos_embd'"):
        get_optimizer_params(Model(Wrapper()), lr=1.0, no_weight_decay=["pos_embd"])


def test_layer_decay_needs_a_backbone_that_knows_its_layers():
    with pytest.raises(ValueError, match="layer_decay: Conv2d does not say which layer a parameter is of"):
        get_optimizer_params(Model(Wrapper()), lr=1.0, layer_decay=0.8)


@pytest.mark.parametrize(("fused", "expected"), [(None, True), (False, False)])
def test_on_the_cpu_steps_are_fused_unless_that_is_off(fused, expected):
    optimizer = ClippedAdamW([nn.Parameter(torch.ones(2))], fused=fused)
    assert all(bool(group["fused"]) == expected for group in optimizer.param_groups)


def test_fused_steps_are_those_of_the_formula():
    """One step of AdamW by hand: decay, then lr in the direction of the gradient's sign, as both moments are of one
    gradient. Tolerance: eps beside a gradient of 0.5, and float32."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([0.5, -0.5])
    ClippedAdamW([weight], lr=0.1, weight_decay=0.1, max_grad_norm=None).step()
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.1) - 0.1 * torch.tensor([1.0, -1.0])
    assert torch.allclose(weight.data, expected, atol=1e-6)
