"""Pre-trained networks of other libraries become ours, and compute the same."""

import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer

from dinox.checkpoint import convert
from dinox.checkpoint.conversion import guess_source
from dinox.modeling import build_resnet

PREFIX = "backbone.bottom_up."


def converted(weights, source):
    return {name.removeprefix(PREFIX): tensor for name, tensor in convert(weights, source).items()}


def randomised(model):
    """Statistics and scales of norms that differ from channel to channel."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        is_norm = "running_" in name or ".bn" in name or name.startswith("bn")
        if is_norm and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_network_computes_the_same_in_our_backbone(library, depth):
    torch.manual_seed(0)
    if library == "torchvision":
        theirs = randomised(torchvision.models.get_model(f"resnet{depth}", weights=None))
        trunk = torch.nn.Sequential(*list(theirs.children())[:-2])
    else:
        theirs = randomised(timm.create_model(f"resnet{depth}", pretrained=False))
        trunk = theirs.forward_features
    ours = build_resnet(depth=depth).eval()
    weights = {
        name: tensor
        for name, tensor in converted(theirs.state_dict(), library).items()
        if "num_batches_tracked" not in name
    }
    assert weights.keys() == ours.state_dict().keys()
    ours.load_state_dict(weights)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = trunk(images)
        torch.testing.assert_close(ours(images)["res5"], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_stem_of_three_convolutions_is_not_ours():
    weights = timm.create_model("resnet18d", pretrained=False).state_dict()
    with pytest.raises(ValueError, match=r"names are not those of timm's ResNet: conv1\.0\.weight"):
        convert(weights, "timm")


def test_detectron2s_own_files_need_only_a_prefix():
    weights = dict(build_resnet(depth=18, width=8).state_dict()) | {"stem.fc.weight": torch.zeros(10, 64)}
    assert guess_source(weights) == "detectron2"
    assert converted(weights, "detectron2").keys() == weights.keys() - {"stem.fc.weight"}


def caffe2_names(weights):
    """Ours -> Caffe2's, for networks of bottleneck blocks. It has no statistics: they are part of scale and shift."""
    renamed = {"fc1000_w": torch.zeros(10, 4), "fc1000_b": torch.zeros(10), "conv1_b": torch.zeros(8)}
    branches = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    ends = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    for name, tensor in weights.items():
        if "running" in name:
            continue
        first, *block, rest = name.split(".", 3) if name.startswith("res") else (*name.split(".", 1),)
        if first == "stem":
            layer, end = rest.split(".", 1)
            renamed["conv1_w" if end == "weight" else f"res_conv1_{ends[end]}"] = tensor
        else:
            number, layer = block
            renamed[f"{first}_{number}_{branches[layer]}_{ends[rest]}"] = tensor
    return renamed


def test_caffe2s_names_and_norms_without_statistics():
    network = build_resnet(depth=50, width=8)
    weights = caffe2_names(network.state_dict())
    assert guess_source(weights) == "detectron2"
    ours = converted(weights, "detectron2")
    assert ours.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        expected = 0 * tensor if "running_mean" in name else 0 * tensor + 1 if "running_var" in name else tensor
        assert torch.equal(ours[name], expected), name


def test_caffe2s_names_are_read_as_detectron2_reads_them(tmp_path):
    weights = caffe2_names(build_resnet(depth=50, width=8).state_dict())
    torch.save({"model": weights, "__author__": "Caffe2", "matching_heuristics": True}, tmp_path / "R-50.pth")
    stock = build_resnet(depth=50, width=8)
    DetectionCheckpointer(stock).load(str(tmp_path / "R-50.pth"))
    ours = converted(weights, "detectron2")
    assert all(torch.equal(ours[name], tensor) for name, tensor in stock.state_dict().items())
