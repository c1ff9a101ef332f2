"""What all one-stage auxiliary heads have in common."""

import pytest
import torch
from detectron2.structures import pairwise_iou
from torch import nn

from dinox.modeling.auxiliary import ATSSHead, FCOSHead, GFLHead, PAAHead, RetinaNetHead
from dinox.structures import HeadPyramid
from tests.modeling.auxiliary.scenes import EMBED_DIM, NUM_CLASSES, STRIDES, make_objects, make_pyramid

HEADS = {
    ATSSHead: {"class", "giou", "centerness"},
    RetinaNetHead: {"class", "giou"},
    FCOSHead: {"class", "giou", "centerness"},
    GFLHead: {"class", "giou", "dfl"},
    PAAHead: {"class", "giou", "iou"},
}
SIZES = ((96, 128), (64, 90))
heads = pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)


def make_head(kind: type[nn.Module], *, seed: int = 0, **overrides) -> nn.Module:
    torch.manual_seed(seed)
    settings = {"embed_dim": EMBED_DIM, "num_classes": NUM_CLASSES, "num_levels": len(STRIDES), **overrides}
    return kind(**settings)


@heads
@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 1), (0, 300)])
def test_losses_are_finite_and_reach_every_parameter_whatever_the_number_of_objects(kind, counts):
    head, pyramid = make_head(kind), make_pyramid(SIZES)
    for level_map in pyramid.maps:
        level_map.requires_grad_()
    output = head(pyramid, [make_objects(size, count) for size, count in zip(SIZES, counts)])
    assert output.losses.keys() == HEADS[kind]
    assert all(loss.shape == () and loss.isfinite() for loss in output.losses.values())
    sum(output.losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert all(level_map.grad.isfinite().all() and level_map.grad.any() for level_map in pyramid.maps)
    assert (output.samples.target_index.amax(1) >= 0).tolist() == [count > 0 for count in counts]


@heads
def test_objects_outside_of_the_image_find_no_positives_and_leave_finite_losses(kind):
    head, pyramid = make_head(kind), make_pyramid(SIZES)
    instances = [make_objects(size, 3) for size in SIZES]
    for each in instances:
        each.gt_boxes.tensor += 5000
    output = head(pyramid, instances)
    assert output.samples.target_index.eq(-1).all()
    assert output.losses["giou"].item() == 0 and output.losses["class"].isfinite()


@heads
def test_an_image_is_assigned_alike_alone_and_in_a_batch(kind):
    """The small image fills a part of the maps; in the batch it has padding, whose places are background.

    PAA assigns by what is predicted. So that this is the same, there are no towers and nothing in the padding.
    """
    head, together = make_head(kind, num_convs=0), make_pyramid(SIZES)
    cells = [tuple(-(-pixels // stride) for pixels in SIZES[1]) for stride in STRIDES]
    alone = HeadPyramid([m[1:, :, :h, :w] for m, (h, w) in zip(together.maps, cells)], STRIDES, SIZES[1:])
    for level_map, (h, w) in zip(together.maps, cells):
        level_map[1, :, h:] = 0
        level_map[1, :, :, w:] = 0
    instances = [make_objects(size, 6, seed=1) for size in SIZES]
    in_batch, by_itself = head(together, instances).samples, head(alone, instances[1:]).samples
    found = as_grids(in_batch.target_index[1], together)
    for own, expected, (h, w) in zip(found, as_grids(by_itself.target_index[0], alone), cells, strict=True):
        assert own[:h, :w].equal(expected)
        assert own[h:].eq(-1).all() and own[:, w:].eq(-1).all()
    assert in_batch.target_index[1].max() >= 0


def as_grids(values: torch.Tensor, pyramid: HeadPyramid) -> list[torch.Tensor]:
    """(P,) of one image -> per level (h, w, anchors of a cell)."""
    per_cell = len(values) // sum(m[0, 0].numel() for m in pyramid.maps)
    levels = values.split([m[0, 0].numel() * per_cell for m in pyramid.maps])
    return [each.view(*m.shape[-2:], per_cell) for each, m in zip(levels, pyramid.maps, strict=True)]


@heads
def test_features_of_samples_are_those_of_the_cell_of_the_anchor(kind):
    """A feature map that holds its own coordinates in its first two channels; anchors are centred near their cell."""
    pyramid = make_pyramid(SIZES)
    for level_map, stride in zip(pyramid.maps, STRIDES):
        h, w = level_map.shape[-2:]
        level_map[:, 0] = torch.arange(w) * stride
        level_map[:, 1] = torch.arange(h)[:, None] * stride
        level_map[:, 2] = stride
    samples = make_head(kind)(pyramid, [make_objects(size, 4) for size in SIZES]).samples
    index = torch.randint(samples.boxes.shape[1], (2, 50), generator=torch.Generator().manual_seed(0))
    features = samples.features_at(index)
    boxes = samples.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    centers, stride = (boxes[..., :2] + boxes[..., 2:]) / 2, features[..., 2:3]
    on_image = (boxes[..., 2:] > boxes[..., :2]).all(-1, keepdim=True)
    assert features.shape == (2, 50, EMBED_DIM)
    assert (((centers - features[..., :2]).abs() <= stride / 2 + 1e-3) | ~on_image).all()
    assert on_image[0].all() and not on_image[1].all(), "anchors in padding are boxes of no size"
    assert not samples.boxes.requires_grad


@heads
def test_a_trained_head_detects_its_objects(kind):
    """A few dozen steps on one image with two objects: both are found, with their classes."""
    pyramid, size = make_pyramid(SIZES[:1], channels=32), SIZES[0]
    objects = make_objects(size, 2, seed=8)
    objects.gt_boxes.tensor = torch.tensor([[8.0, 12, 60, 70], [70, 30, 120, 90]])
    head = make_head(kind, embed_dim=32)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(head(pyramid, [objects]).losses.values()).backward()
        optimizer.step()
    (found,) = head.detect(pyramid)
    assert found.image_size == size and found.scores.diff().le(0).all() and len(found) <= 100
    iou = pairwise_iou(objects.gt_boxes, found.pred_boxes)  # (2, detections)
    same_class = objects.gt_classes[:, None] == found.pred_classes
    assert (iou * same_class).amax(1).min() > 0.7


@heads
def test_detections_stay_inside_their_image_not_in_its_padding(kind):
    head, pyramid = make_head(kind), make_pyramid(SIZES)
    head.detections.score_threshold = 0.0
    for found, (height, width) in zip(head.detect(pyramid), SIZES):
        assert 0 < len(found) <= 100 and found.image_size == (height, width)
        assert (found.pred_boxes.tensor >= 0).all() and not found.scores.requires_grad
        assert (found.pred_boxes.tensor <= torch.tensor([width, height] * 2)).all()


@heads
def test_a_pyramid_of_other_levels_or_strides_is_a_clear_error(kind):
    head, pyramid, instances = make_head(kind), make_pyramid(SIZES), [make_objects(size, 1) for size in SIZES]
    fewer = HeadPyramid(pyramid.maps[:2], STRIDES[:2], SIZES)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: expected a pyramid of num_levels = 3 maps, got 2"):
        head(fewer, instances)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: the map of level 0 has 12 x 16 cells.*stride of 4"):
        head(HeadPyramid(pyramid.maps, (4, 8, 16), SIZES), instances)


@heads
@pytest.mark.parametrize("num_convs", [0, 2])
def test_towers_have_as_many_convolutions_as_wanted(kind, num_convs):
    head = make_head(kind, num_convs=num_convs)
    assert len(head.branches.class_tower) == len(head.branches.box_tower) == num_convs
    output = head(make_pyramid(SIZES), [make_objects(size, 2) for size in SIZES])
    assert all(loss.isfinite() for loss in output.losses.values())


@heads
def test_classes_start_at_a_probability_of_one_in_a_hundred(kind):
    logits = make_head(kind).branches(make_pyramid(SIZES)).logits
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


@heads
def test_losses_under_autocast_are_float32(kind):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = make_head(kind)(make_pyramid(SIZES), [make_objects(size, 2) for size in SIZES])
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}
    assert output.samples.boxes.dtype == torch.float32


@heads
def test_boxes_are_decoded_in_float32_under_autocast(kind):
    head, pyramid = make_head(kind), make_pyramid(SIZES)
    anchors, predictions = head.place_anchors(pyramid), head.branches(pyramid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = head.decode(anchors, predictions)
    assert under_autocast.equal(head.decode(anchors, predictions))
