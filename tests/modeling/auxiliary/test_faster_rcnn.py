"""Faster R-CNN and Mask R-CNN as auxiliary heads."""

import dataclasses
import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from dinox.matching import Sampled
from dinox.modeling import FasterRCNNHead, MaskBranch, RegionProposals
from dinox.modeling.auxiliary.faster_rcnn import pool_boxes
from dinox.structures import HeadPyramid

from .scenes import EMBED_DIM, NUM_CLASSES, make_objects, make_pyramid

SIZES = ((64, 96), (40, 50))


def make_head(**options) -> FasterRCNNHead:
    torch.manual_seed(0)
    options = {"num_samples": 16, "hidden_dims": (8, 8)} | options
    return FasterRCNNHead(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES, **options)


def with_masks(objects: Instances, kind: type = BitMasks) -> Instances:
    """Masks that fill the boxes."""
    polygons = [[torch.tensor([x1, y1, x2, y1, x2, y2, x1, y2]).numpy()] for x1, y1, x2, y2 in objects.gt_boxes.tensor]
    masks = PolygonMasks(polygons)
    objects.gt_masks = masks if kind is PolygonMasks else BitMasks.from_polygon_masks(masks, *objects.image_size)
    return objects


def one_object(box: list[float], label: int = 2, image_size=(64, 96)) -> Instances:
    return Instances(image_size, gt_boxes=Boxes([box]), gt_classes=torch.tensor([label]))


# ------------------------------------------------------------------------------------------------- region proposals


def test_proposal_losses_of_zero_outputs_are_log_2_and_the_distance_of_the_deltas():
    proposals = RegionProposals(embed_dim=EMBED_DIM)
    for parameter in proposals.parameters():
        parameter.data.zero_()
    # The square anchor of 32 x 32 of the cell (row 2, column 6) at stride 8, two pixels to the right: IoU 30 / 34 is
    # the highest of all anchors, and above 0.7 for this anchor alone. Its sides are those of the object.
    objects = one_object([48 - 16 + 2, 16 - 16, 48 + 16 + 2, 16 + 16])
    _, losses = proposals(make_pyramid([(64, 96)]), [objects])
    count = 9 * (8 * 12 + 4 * 6 + 2 * 3)  # anchors, few of which are ignored
    assert losses["rpn_class"].item() == pytest.approx(math.log(2), rel=1e-5)
    sampled = 2 / 32 / losses["rpn_bbox"].item()  # dx = 2 / 32, all other deltas 0
    assert sampled == pytest.approx(round(sampled), abs=1e-3) and 200 < round(sampled) <= 256 < count


@pytest.mark.parametrize(
    ("sampled", "divisor"),
    [
        ([([0, 1], [2, 3, 4]), ([5], [6])], 7),
        ([([], [2, 3, 4]), ([5], [6])], 1 + 3 + 2),  # an image without objects
        ([([], []), ([5], [])], 2 + 2),  # one without anchors, one without background
    ],
    ids=["both", "no positives", "nothing"],
)
def test_an_image_without_positives_or_background_counts_as_if_it_had_one(sampled, divisor):
    """Zero logits: log 2 for every sampled anchor, divided by what the authors' code divides by."""
    proposals = RegionProposals(embed_dim=EMBED_DIM)
    for parameter in proposals.parameters():
        parameter.data.zero_()
    parts = iter([Sampled(*(torch.tensor(part, dtype=torch.int64) for part in image)) for image in sampled])
    proposals.sample = lambda assigned, generator: next(parts)
    assigned_somewhere = [make_objects(size, 1) for size in SIZES]
    _, losses = proposals(make_pyramid(SIZES), assigned_somewhere)
    count = sum(len(part) for image in sampled for part in image)
    assert losses["rpn_class"].item() == pytest.approx(count * math.log(2) / divisor, rel=1e-5)


def test_few_anchors_are_all_sampled_and_divided_by():
    """A pyramid of 18 anchors, all background: without objects one positive more."""
    proposals = RegionProposals(embed_dim=EMBED_DIM)
    for parameter in proposals.parameters():
        parameter.data.zero_()
    _, losses = proposals(make_pyramid([(8, 16)], strides=(8,)), [make_objects((8, 16), 0)])
    assert losses["rpn_class"].item() == pytest.approx(18 * math.log(2) / 19, rel=1e-5)
    assert losses["rpn_bbox"].item() == 0


def test_proposals_lie_inside_of_the_image_and_are_no_more_than_asked_for():
    proposals = RegionProposals(embed_dim=EMBED_DIM)
    found, losses = proposals(make_pyramid(SIZES))
    assert losses == {}
    for boxes, (height, width) in zip(found, SIZES, strict=True):
        limits = torch.tensor([width, height, width, height])
        assert 0 < len(boxes) <= 1000
        assert (boxes.tensor >= 0).all() and (boxes.tensor <= limits).all() and boxes.nonempty().all()
        assert not boxes.tensor.requires_grad


def test_padding_learns_nothing():
    proposals = RegionProposals(embed_dim=EMBED_DIM, num_samples=10**6)
    seen = []
    proposals.sample = lambda assigned, generator: (
        seen.append(len(assigned)) or Sampled(torch.zeros(0, dtype=torch.int64), (assigned == -1).nonzero()[:, 0])
    )
    proposals(make_pyramid(SIZES), [make_objects(size, 1) for size in SIZES])
    cells = [[math.ceil(h / s) * math.ceil(w / s) for s in (8, 16, 32)] for h, w in SIZES]
    assert seen == [9 * sum(levels) for levels in cells]


# ----------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    ("side", "level"), [(20, 0), (111, 0), (112, 0), (223, 0), (224, 1), (447, 1), (448, 2), (2000, 2)]
)
def test_a_box_is_pooled_from_floor_log2_of_its_side_over_14_strides(side, level):
    strides = (8, 16, 32, 64)
    maps = [torch.full((1, 1, 2048 // s, 2048 // s), float(i)) for i, s in enumerate(strides)]
    pyramid = HeadPyramid(maps, strides, ((2048, 2048),))
    pooled = pool_boxes(pyramid, [torch.tensor([[8.0, 8.0, 8.0 + side, 8.0 + side]])], 7)
    assert pooled.shape == (1, 1, 7, 7)
    assert level == max(0, min(2, math.floor(math.log2(side / 112))))  # the last level is not pooled from
    assert (pooled == level).all()


def test_boxes_are_pooled_at_full_precision_from_half_precision_maps():
    pyramid = make_pyramid(SIZES)
    half = dataclasses.replace(pyramid, maps=[m.bfloat16() for m in pyramid.maps])
    rounded = dataclasses.replace(pyramid, maps=[m.float() for m in half.maps])
    boxes = [torch.tensor([[3.3, 7.7, 61.1, 50.3]]), torch.zeros(0, 4)]
    assert torch.equal(pool_boxes(half, boxes, 7), pool_boxes(rounded, boxes, 7))


# ------------------------------------------------------------------------------------------------------------- losses


def test_losses_of_zero_outputs_follow_from_the_sampled_boxes():
    head = make_head()
    for parameter in head.predictor.parameters():
        parameter.data.zero_()
    head.sample = lambda assigned, generator: Sampled(torch.tensor([0, 1]), torch.tensor([2, 3]))
    objects = one_object([10.0, 10.0, 30.0, 30.0])
    proposals = Boxes([[14.0, 10.0, 34.0, 30.0], [60.0, 5.0, 90.0, 30.0], [0.0, 40.0, 20.0, 60.0]])
    head.proposals.forward = lambda pyramid, instances=None: ([proposals], {})
    output = head(make_pyramid([(64, 96)]), [objects])
    assert output.samples.target_index.tolist() == [[0, 0, -1, -1]]  # the object itself comes first
    assert output.samples.boxes[0, :2].tolist() == [[10, 10, 30, 30], [14, 10, 34, 30]]
    assert output.losses["class"].item() == pytest.approx(math.log(NUM_CLASSES + 1))
    # Deltas of zero leave the proposals where they are: IoU 16 * 20 / (24 * 20) = 2 / 3, and the enclosing box has no
    # more than their union. The object itself has 1 - GIoU = 0; four boxes are sampled.
    assert output.losses["giou"].item() == pytest.approx(10 * (1 / 3) / 4, rel=1e-5)


def test_each_class_has_its_own_box():
    head = make_head()
    for parameter in head.predictor.parameters():
        parameter.data.zero_()
    head.sample = lambda assigned, generator: Sampled(torch.tensor([1]), torch.tensor([], dtype=torch.int64))
    proposals = Boxes([[12.0, 10.0, 32.0, 30.0]])
    head.proposals.forward = lambda pyramid, instances=None: ([proposals], {})
    # dx = -0.1 sides, in units of its standard deviation 0.1, for class 2 only: the box lies right.
    head.predictor.bbox_pred.bias.data.view(NUM_CLASSES, 4)[2, 0] = -1.0
    pyramid = make_pyramid([(64, 96)])
    right, wrong = (
        head(pyramid, [one_object([10.0, 10.0, 30.0, 30.0], label)]).losses["giou"].item() for label in (2, 3)
    )
    assert right == pytest.approx(0, abs=1e-5)  # float32 of numbers near 1
    assert wrong == pytest.approx(10 * (1 - 18 / 22), rel=1e-5)


def test_a_box_of_any_class_is_the_same_for_all():
    head = make_head(regression="class_agnostic", delta_stds=(0.05, 0.05, 0.1, 0.1))
    for parameter in head.predictor.parameters():
        parameter.data.zero_()
    head.sample = lambda assigned, generator: Sampled(torch.tensor([1]), torch.tensor([], dtype=torch.int64))
    head.proposals.forward = lambda pyramid, instances=None: ([Boxes([[12.0, 10.0, 32.0, 30.0]])], {})
    # dx = -0.1 sides, in units of its standard deviation 0.05.
    head.predictor.bbox_pred.bias.data[0] = -2.0
    for label in (2, 3):
        losses = head(make_pyramid([(64, 96)]), [one_object([10.0, 10.0, 30.0, 30.0], label)]).losses
        assert losses["giou"].item() == pytest.approx(0, abs=1e-5)  # float32 of numbers near 1
    found = head.eval().detect(make_pyramid([(64, 96)]))[0].pred_boxes.tensor
    assert len(found) and torch.allclose(found[0], torch.tensor([10.0, 10.0, 30.0, 30.0]), atol=1e-4)


def test_a_box_head_with_convolutions_learns():
    head = make_head(num_convs=2, hidden_dims=(8,), regression="class_agnostic")
    names = {name for name, _ in head.box_head.named_parameters()}
    assert names == {
        *(f"conv{i}.{name}" for i in (1, 2) for name in ("weight", "norm.weight", "norm.bias")),
        "fc1.weight",
        "fc1.bias",
    }
    sum(head(make_pyramid(SIZES), [make_objects(size, 3) for size in SIZES]).losses.values()).backward()
    assert all(parameter.grad.any() for parameter in head.box_head.parameters())


def test_an_unknown_regression_is_rejected():
    with pytest.raises(ValueError, match="regression must be one of 'class_specific', 'class_agnostic', got 'both'"):
        make_head(regression="both")


def test_evaluation_can_suppress_proposals_otherwise():
    pyramid = make_pyramid(SIZES)

    def count(training: bool, **options) -> int:
        torch.manual_seed(0)
        proposals = RegionProposals(embed_dim=EMBED_DIM, **options).train(training)
        return sum(map(len, proposals(pyramid)[0]))

    usual, few = count(True), count(False, tested_nms_iou=0.1)
    assert count(True, tested_nms_iou=0.1) == count(False) == usual > few


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 120)], ids=str)
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_every_parameter_learns_from_any_number_of_objects(counts, masks):
    head = make_head(mask_branch=MaskBranch(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES, num_convs=1))
    if not masks:
        head.mask_branch = None
    pyramid = make_pyramid(SIZES)
    maps = [m.requires_grad_() for m in pyramid.maps]
    objects = [with_masks(make_objects(size, count)) for size, count in zip(SIZES, counts, strict=True)]
    output = head(pyramid, objects)
    assert output.losses.keys() == {"rpn_class", "rpn_bbox", "class", "giou"} | ({"mask"} if masks else set())
    sum(output.losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(m.grad).all() for m in maps)
    if sum(counts):
        assert all(parameter.grad.any() for name, parameter in head.predictor.named_parameters())
        assert not masks or head.mask_branch.head.predictor.weight.grad.any()


# ------------------------------------------------------------------------------------------------------------ samples


def test_samples_are_the_sampled_boxes_positives_first_as_many_of_every_image():
    head = make_head()
    output = head(make_pyramid(SIZES), [make_objects(size, count) for size, count in zip(SIZES, (3, 0), strict=True)])
    samples = output.samples
    assert samples.boxes.shape == (2, 16, 4) and not samples.boxes.requires_grad
    positive = samples.target_index[0] >= 0
    assert positive.any() and not positive[positive.sum() :].any()
    assert (samples.target_index[1] == -1).all()


def test_features_are_pooled_and_averaged():
    head = make_head()
    pyramid = make_pyramid(SIZES)
    index = torch.tensor([[2, 0], [1, 1]])
    samples = head(pyramid, [make_objects(size, 2) for size in SIZES]).samples
    boxes = samples.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    expected = pool_boxes(pyramid, list(boxes), 7).mean((2, 3)).unflatten(0, (2, 2))
    assert torch.equal(samples.features_at(index), expected)


def test_an_image_for_which_nothing_is_proposed_is_background():
    head = make_head()
    head.proposals.forward = lambda pyramid, instances=None: ([Boxes(torch.zeros(0, 4))], {})
    samples = head(make_pyramid([(64, 96)]), [make_objects((64, 96), 0)]).samples
    assert samples.boxes.tolist() == [[[0, 0, 96, 64]]] and samples.target_index.tolist() == [[-1]]


def test_choices_are_those_of_the_generator():
    objects = [make_objects(size, 4) for size in SIZES]

    def losses(seed: int) -> list[float]:
        pyramid = dataclasses.replace(make_pyramid(SIZES), generator=torch.Generator().manual_seed(seed))
        return [loss.item() for loss in make_head(num_samples=4)(pyramid, objects).losses.values()]

    assert losses(0) == losses(0) != losses(1)


# --------------------------------------------------------------------------------------------------------- Mask R-CNN


@pytest.mark.parametrize("kind", [BitMasks, PolygonMasks])
def test_the_mask_loss_is_log_2_without_knowledge_and_falls_where_masks_are_right(kind):
    branch = MaskBranch(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES, num_convs=1)
    for parameter in branch.head.predictor.parameters():
        parameter.data.zero_()
    head = make_head(mask_branch=branch)
    pyramid, objects = make_pyramid([(64, 96)]), [with_masks(one_object([10.0, 10.0, 50.0, 50.0], label=2), kind)]
    head.sample = lambda assigned, generator: Sampled(torch.tensor([0]), torch.tensor([], dtype=torch.int64))
    assert head(pyramid, objects).losses["mask"].item() == pytest.approx(math.log(2), rel=1e-6)
    # The object fills its box: all cells of its class are to be on. Logits of 20 are as good as infinite.
    branch.head.predictor.bias.data[2] = 20.0
    assert head(pyramid, objects).losses["mask"].item() == pytest.approx(0, abs=1e-6)
    branch.head.predictor.bias.data[2], branch.head.predictor.bias.data[3] = 0.0, 20.0  # another class
    assert head(pyramid, objects).losses["mask"].item() == pytest.approx(math.log(2), rel=1e-6)


def test_only_a_mask_branch_needs_masks():
    assert make_head().needs == ()
    branch = MaskBranch(embed_dim=EMBED_DIM, num_classes=NUM_CLASSES)
    assert make_head(mask_branch=branch).needs == ("gt_masks",)


# ------------------------------------------------------------------------------------------------- the head as a whole


def test_detections_are_the_best_after_suppression_in_the_frame_of_the_image():
    head = make_head(max_detections=7)
    found = head.eval().detect(make_pyramid(SIZES))
    for each, (height, width) in zip(found, SIZES, strict=True):
        assert each.image_size == (height, width) and len(each) == 7
        assert (each.scores.diff() <= 0).all() and not each.scores.requires_grad
        assert (each.pred_boxes.tensor <= torch.tensor([width, height, width, height])).all()
        assert ((each.pred_classes >= 0) & (each.pred_classes < NUM_CLASSES)).all()


@pytest.mark.parametrize("strides", [(8,), (8, 16, 64, 128), (6, 12, 24)], ids=str)
def test_a_pyramid_that_boxes_cannot_be_pooled_from_is_rejected(strides):
    with pytest.raises(ValueError, match=r"strides are powers of 2, each twice the one before, .*got strides"):
        make_head().check_strides(strides)


def test_parameters_are_those_of_the_release():
    with torch.device("meta"):
        branch = MaskBranch(embed_dim=256, num_classes=80)
        head = FasterRCNNHead(embed_dim=256, num_classes=80, mask_branch=branch)
    weights = {name: tuple(each.shape) for name, each in head.named_parameters() if name.endswith("weight")}
    assert weights == {
        "proposals.head.conv.weight": (256, 256, 3, 3),
        "proposals.head.objectness_logits.weight": (9, 256, 1, 1),
        "proposals.head.anchor_deltas.weight": (36, 256, 1, 1),
        "box_head.fc1.weight": (1024, 12544),
        "box_head.fc2.weight": (1024, 1024),
        "predictor.cls_score.weight": (81, 1024),
        "predictor.bbox_pred.weight": (320, 1024),
        **{f"mask_branch.head.mask_fcn{i}.weight": (256, 256, 3, 3) for i in (1, 2, 3, 4)},
        "mask_branch.head.deconv.weight": (256, 256, 2, 2),
        "mask_branch.head.predictor.weight": (80, 256, 1, 1),
    }
