"""What holds for all backbones on timm's networks: any image size, gradients everywhere, no dependence on batches."""

import sys

import pytest
import torch
from torch import nn

from dinox.modeling import ChannelMapper, Swin, TimmBackbone
from tests.modeling.backbone.tiny import BUILDERS, CONVNEXT, RESNET, SWIN, WINDOWS, eva02, vit
from tests.small_models import build_small, make_input

every_backbone = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def seeded(build):
    torch.manual_seed(0)
    return build()


@every_backbone
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (7, 5), (1, 1)])
def test_maps_have_the_sides_of_the_image_by_their_stride_rounded_up(build, size):
    backbone = seeded(build).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, *size))
    shapes = backbone.output_shape()
    assert list(maps) == list(shapes)
    for name, shape in shapes.items():
        expected = (1, shape.channels, -(-size[0] // shape.stride), -(-size[1] // shape.stride))
        assert maps[name].shape == expected, name
        assert torch.isfinite(maps[name]).all()


@every_backbone
def test_no_value_of_a_tensor_is_looked_at(build):
    """So a device never has to be waited for: on the meta device there are no values."""
    with torch.device("meta"):
        maps = build()(torch.empty(2, 3, 37, 53))
    assert all(m.is_meta for m in maps.values())


@every_backbone
def test_every_parameter_gets_a_gradient(build):
    backbone = seeded(build)
    maps = backbone(torch.rand(2, 3, 37, 53))
    sum((m * torch.randn_like(m)).sum() for m in maps.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@every_backbone
def test_an_image_has_the_same_maps_alone_and_in_a_batch(build):
    backbone = seeded(build).eval()
    images = torch.rand(2, 3, 37, 53)
    with torch.no_grad():
        together, alone = backbone(images), backbone(images[1:])
    for name in together:
        # Matrix products of other sizes are summed in another order.
        torch.testing.assert_close(together[name][1:], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [Swin, vit, eva02], ids=["swin", "vit", "eva02"])
def test_checkpointing_changes_no_gradient(build):
    options = SWIN if build is Swin else WINDOWS
    images, gradients = torch.rand(1, 3, 37, 53), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = build(**{**options, "drop_path": 0.5}, gradient_checkpointing=checkpointing)
        torch.manual_seed(1)  # of stochastic depth, which has to be drawn alike when blocks run again
        sum(m.square().sum() for m in backbone(images).values()).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # the same operations, perhaps accumulated anew


@pytest.mark.parametrize("settings", [CONVNEXT, RESNET], ids=["convnext", "resnet"])
def test_checkpointing_of_other_networks_changes_no_gradient(settings):
    images, gradients = torch.rand(2, 3, 64, 64), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = TimmBackbone(**settings, norms="frozen", gradient_checkpointing=checkpointing)
        sum(m.square().sum() for m in backbone(images).values()).backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_checkpointing_keeps_fewer_activations():
    def count(**options):
        kept = []
        backbone = Swin(**SWIN, **options)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            backbone(torch.rand(1, 3, 64, 64))
        return sum(kept)

    assert count(gradient_checkpointing=True) < 0.5 * count()


DETECTORS = {name: BUILDERS[name] for name in ("swin, checkpointing", "convnext", "vit", "eva02")}


@pytest.mark.parametrize("build", DETECTORS.values(), ids=DETECTORS)
def test_detections_of_an_image_do_not_depend_on_its_batch(build):
    model = build_small().eval()
    model.backbone = ChannelMapper(bottom_up=seeded(build), embed_dim=32, num_levels=4).eval()
    inputs = [make_input(37, 53, 0), make_input(64, 40, 0, seed=1)]
    with torch.no_grad():
        together = model.raw_predictions(inputs)
        for i, single in enumerate(inputs):
            alone = model.raw_predictions([single])
            # Sums in another order, through all layers; what depended on the batch would differ in the first digits.
            torch.testing.assert_close(together.logits[:, i], alone.logits[:, 0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "build, first",
    [
        (lambda n: Swin(**SWIN, freeze_at=n), ["network.patch_embed", "network.layers.0"]),
        (lambda n: vit(freeze_at=n), ["network.p", "network.blocks.0"]),
        (lambda n: TimmBackbone(**CONVNEXT, freeze_at=n), ["network.stem", "network.stages_0"]),
        (lambda n: TimmBackbone(**RESNET, freeze_at=n), ["network.conv1", "network.layer1"]),
    ],
    ids=["swin", "vit", "convnext", "resnet"],
)
@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_the_first_parts_can_be_frozen(build, first, freeze_at):
    for name, parameter in build(freeze_at).named_parameters():
        frozen = any(name.startswith(prefix) for prefix in first[:freeze_at])
        assert parameter.requires_grad is not frozen, name


@pytest.mark.parametrize("build", [lambda **o: Swin(**SWIN, **o), lambda **o: eva02(**o)])
def test_frozen_norms_are_not_trained_but_those_of_outputs_are(build):
    backbone = build(norms="frozen", stage_norm="LN")
    for name, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.requires_grad is name.startswith("stage_norms"), name


def test_frozen_batch_norms_keep_their_statistics_and_their_activation():
    backbone = TimmBackbone(**RESNET, norms="frozen").train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())


def test_stages_beyond_the_last_output_are_not_built():
    names = [name for name, _ in Swin(**SWIN, out_features=("res2", "res3")).named_parameters()]
    assert not any(name.startswith("network.layers.2") for name in names)
    names = [name for name, _ in TimmBackbone(**CONVNEXT, out_features=("res3",)).named_parameters()]
    assert not any(name.startswith("network.stages_2") for name in names)


def test_without_timm_the_error_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.setitem(sys.modules, name, None)
    for build in (lambda: Swin(**SWIN), vit, lambda: TimmBackbone(**RESNET)):
        with pytest.raises(ValueError, match=r"pip install 'dinox\[timm\]'"):
            build()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Swin(**SWIN, out_features=("p3",)), "out_features: expected some of res2, res3, res4, res5"),
        (lambda: Swin(**{**SWIN, "num_heads": (1, 2)}), "num_heads: expected one for each of the 4 depths"),
        (lambda: Swin(**SWIN, stage_norm="ln"), "stage_norm: expected one of 'LN', '', got 'ln'. Did you mean 'LN'"),
        (lambda: vit(window_size=2, global_blocks=(3,)), r"numbers from 0 to 2, got \[3\]"),
        (lambda: Swin(**SWIN, freeze_at=-1), r"freeze_at must lie in \[0, 5\], got -1"),
        (lambda: vit(drop_path=1.5), r"drop_path must lie in \[0, 1\], got 1\.5"),
        (lambda: TimmBackbone(model_name="resnet5"), "timm.list_models.*Did you mean 'resnet50'"),
        (lambda: TimmBackbone(model_name="hf-hub:timm/resnet18"), "expected one of timm.list_models"),
        (lambda: TimmBackbone(model_name="swin_tiny_patch4_window7_224"), "takes images of one size only"),
        (lambda: TimmBackbone(model_name="vit_tiny_patch16_224"), "does not give one map for each stride"),
        (lambda: TimmBackbone(model_name="resnet18", options={"pretrained": True}), "'pretrained' cannot be set"),
        (lambda: TimmBackbone(model_name="resnet18", options={"dims": [1]}), "timm cannot build resnet18"),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
