"""Parts on their own."""

import pytest
import torch
import torchvision

from dinox.checkpoint import convert
from dinox.layers import group_norm
from dinox.modeling import (
    BestClassDetections,
    ChannelMapper,
    ClassAgnosticSelection,
    QuerySelection,
    TopKDetections,
    build_resnet,
)
from dinox.structures import RawPredictions

from ..small_models import make_memory


def test_group_norm_takes_the_greatest_number_of_groups_that_fits():
    assert [group_norm(channels).num_groups for channels in (256, 64, 36, 24, 31)] == [32, 32, 18, 24, 31]


@pytest.mark.parametrize(("features", "levels"), [(("res3", "res4", "res5"), 4), (("res2", "res3", "res4", "res5"), 5)])
def test_channel_mapper_adds_levels_from_the_raw_last_map(features, levels):
    backbone = build_resnet(depth=18, width=16, out_features=features)
    mapper = ChannelMapper(bottom_up=backbone, embed_dim=32, num_levels=levels)
    assert mapper.extra_convs[0].conv.in_channels == 16 * 8  # res5 itself, not its mapped form
    maps = mapper(torch.zeros(1, 3, 65, 97))
    shapes = mapper.output_shape()
    assert list(maps) == list(shapes)
    for name, features_of_level in maps.items():
        stride = shapes[name].stride
        assert features_of_level.shape == (1, 32, -(-65 // stride), -(-97 // stride))


def test_channel_mapper_with_too_few_levels_is_an_error():
    with pytest.raises(ValueError, match="num_levels = 2, but the backbone gives 3 maps"):
        ChannelMapper(bottom_up=build_resnet(depth=18, width=16), embed_dim=32, num_levels=2)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnets_have_the_names_and_sizes_of_detectron2(depth):
    with torch.device("meta"):
        names = dict(build_resnet(depth=depth, freeze_at=0).named_parameters())
    last = {18: 1, 34: 2, 50: 2, 101: 2}[depth]
    convolution = "conv3" if depth >= 50 else "conv2"
    assert names[f"res5.{last}.{convolution}.weight"].shape[0] == (2048 if depth >= 50 else 512)
    assert "stem.conv1.weight" in names


def test_necks_without_norm_start_as_torch_does_and_those_with_one_with_xavier():
    """DETR's projection and Deformable DETR's; the standard deviations of the two are 1 / sqrt(3 n) and
    sqrt(2 / (n + m)) for n input and m output channels.
    """
    torch.manual_seed(0)
    backbone = build_resnet(depth=18, out_features=["res5"])
    for norm, expected in (("", (1 / (3 * 512)) ** 0.5), ("GN", (2 / (512 + 256)) ** 0.5)):
        neck = ChannelMapper(bottom_up=backbone, embed_dim=256, num_levels=1, norm=norm)
        assert neck.convs[0].conv.weight.std().item() == pytest.approx(expected, rel=0.02)


def test_resnet_errors_name_what_exists():
    with pytest.raises(ValueError, match=r"depth must be one of \[18, 34, 50, 101, 152\], got 42"):
        build_resnet(depth=42)
    with pytest.raises(ValueError, match="out_features must name some of"):
        build_resnet(out_features=["res6"])


def test_top_k_takes_the_best_pairs_of_query_and_class():
    logits = torch.tensor([[[0.0, 3.0], [2.0, -1.0], [-5.0, 1.0]]])[None]  # (1 layer, 1 image, 3 queries, 2 classes)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]])[None]
    (found,) = TopKDetections(num_detections=3)(RawPredictions(logits, boxes), [(100, 200)])
    assert found.pred_classes.tolist() == [1, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    expected = torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 200.0, 100.0]])
    torch.testing.assert_close(found.pred_boxes.tensor, expected)


def test_padded_queries_are_no_detections():
    logits, boxes = torch.zeros(1, 1, 3, 2), torch.full((1, 1, 3, 4), 0.5)
    padding = torch.tensor([[False, True, True]])
    (found,) = TopKDetections(num_detections=10)(RawPredictions(logits, boxes, padding_mask=padding), [(10, 10)])
    assert len(found) == 2  # one query, two classes


def test_selection_ranks_by_the_best_class_and_detaches():
    torch.manual_seed(0)
    selection = QuerySelection(embed_dim=8, num_classes=3, num_proposals=5)
    tokens = torch.randn(1, 20, 8, requires_grad=True)
    proposals = selection(make_memory(tokens, [(4, 4), (2, 2)]))
    best = proposals.logits.amax(-1)[0]
    assert (best[:-1] >= best[1:] - 1e-6).all()
    assert not proposals.anchors.requires_grad and not proposals.features.requires_grad
    assert proposals.boxes.requires_grad and proposals.logits.requires_grad


def test_class_agnostic_selection_ranks_by_class_0_and_teaches_all_tokens():
    torch.manual_seed(0)
    selection = ClassAgnosticSelection(embed_dim=8, num_classes=3, num_proposals=5)
    proposals = selection(make_memory(torch.randn(1, 20, 8, requires_grad=True), [(4, 4), (2, 2)]))
    assert proposals.logits.shape == (1, 20, 3) and proposals.boxes.shape == (1, 20, 4)
    ranked = proposals.logits[0, :, 0].topk(5).indices
    assert torch.equal(proposals.anchors[0], proposals.boxes[0, ranked])
    assert not proposals.anchors.requires_grad and not proposals.features.requires_grad


def test_best_class_detections_have_one_class_for_each_query():
    """Softmax over two classes and "no object", which is never detected."""
    logits = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 5.0]]])[None]
    boxes = torch.full((1, 1, 2, 4), 0.5)
    (found,) = BestClassDetections(num_detections=2)(RawPredictions(logits, boxes), [(10, 10)])
    probabilities = logits[0, 0].softmax(-1)
    assert found.pred_classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.stack([probabilities[0, 0], probabilities[1, 1]]))


def test_dc5_computes_what_torchvisions_dilated_resnet_does():
    """Stride 16, and torchvision's order of dilations. Same weights, float64: 1e-9 is rounding."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).double().eval()
    ours = build_resnet(depth=50, out_features=["res5"], res5_dilation=2).double().eval()
    converted = convert(theirs.state_dict(), source="torchvision")
    converted = {name.removeprefix("backbone.bottom_up."): tensor for name, tensor in converted.items()}
    ours.load_state_dict({name: converted[name] for name in ours.state_dict()})
    image = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    stages = torch.nn.Sequential(*list(theirs.children())[:-2])
    features = ours(image)["res5"]
    assert features.shape == (1, 2048, 3, 4)
    torch.testing.assert_close(features, stages(image), atol=1e-9, rtol=1e-6)


def test_dilation_needs_bottlenecks():
    with pytest.raises(ValueError, match="needs bottleneck blocks"):
        build_resnet(depth=18, res5_dilation=2)
    with pytest.raises(ValueError, match="res5_dilation must be 1 or 2, got 4"):
        build_resnet(res5_dilation=4)
