import copy

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from dinox.engine import ClippedAdamW, get_optimizer_params
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
