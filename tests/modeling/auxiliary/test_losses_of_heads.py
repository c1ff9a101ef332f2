"""Every one-stage head's losses against loops over its anchors, given what they are assigned to.

Tolerance: float32 sums of some thousand terms against float64 ones, 1e-4.
"""

import math

import pytest
import torch
from torch import nn

from dinox.modeling.auxiliary import ATSSHead, FCOSHead, GFLHead, PAAHead, RetinaNetHead
from dinox.modeling.auxiliary.fcos import size_ranges
from tests.matching.test_atss import iou_of
from tests.modeling.auxiliary.scenes import make_objects, make_pyramid
from tests.modeling.auxiliary.slow import (
    all_anchors,
    centerness_of,
    cross_entropy,
    decode,
    focal,
    giou_of,
    make_head,
    positives_per_image,
    sigmoid,
)

SIZES = ((64, 90), (50, 60))
SMALL_STDS, UNIT_STDS = (0.1, 0.1, 0.2, 0.2), (1, 1, 1, 1)


def slow_atss(anchors: list) -> dict[str, float]:
    found = [a for a in anchors if a.box is not None]
    wanted = [centerness_of(a.cell[0] * a.stride, a.cell[1] * a.stride, a.box) for a in found]
    boxes = [decode(a.anchor, a.predicted, SMALL_STDS) for a in found]
    number = sum(max(n, 1) for n in positives_per_image(anchors))
    return {
        "class": sum(focal(a.logits, a.label) for a in anchors if a.on_image) / number,
        "giou": 2 * sum(w * (1 - giou_of(b, a.box)) for w, b, a in zip(wanted, boxes, found)) / max(sum(wanted), 1),
        "centerness": sum(cross_entropy(a.quality, w) for w, a in zip(wanted, found)) / number,
    }


def slow_fcos(anchors: list) -> dict[str, float]:
    found = [a for a in anchors if a.box is not None]
    points = [((a.cell[0] + 0.5) * a.stride, (a.cell[1] + 0.5) * a.stride) for a in found]
    wanted = [centerness_of(*point, a.box) for point, a in zip(points, found)]
    boxes = []
    for (x, y), a in zip(points, found):
        left, top, right, bottom = (max(d, 0) * a.stride for d in a.predicted)
        boxes.append([x - left, y - top, x + right, y + bottom])
    number = max(len(found), 1)
    giou = sum(w * (1 - giou_of(b, a.box)) for w, b, a in zip(wanted, boxes, found))
    return {
        "class": sum(focal(a.logits, a.label) for a in anchors) / number,
        "giou": giou / sum(wanted),
        "centerness": sum(cross_entropy(a.quality, w) for w, a in zip(wanted, found)) / number,
    }


def slow_gfl(anchors: list) -> dict[str, float]:
    sums = {"class": 0.0, "giou": 0.0, "dfl": 0.0, "weight": 0.0}
    for a in anchors:
        quality = 0.0
        if a.box is not None:
            x, y = a.cell
            sides = [a.predicted[17 * side : 17 * side + 17] for side in range(4)]
            shares = [[math.exp(v) / sum(map(math.exp, side)) for v in side] for side in sides]
            left, top, right, bottom = (sum(n * share for n, share in enumerate(side)) for side in shares)
            box, wanted = [x - left, y - top, x + right, y + bottom], [c / a.stride for c in a.box]
            quality, weight = iou_of(box, wanted), max(map(sigmoid, a.logits))
            sums["giou"] += weight * (1 - giou_of(box, wanted))
            sums["weight"] += weight
            for share, target in zip(shares, (x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y)):
                target = min(max(target, 0), 15.9)
                below = int(target)
                likely = (below + 1 - target) * math.log(share[below]) + (target - below) * math.log(share[below + 1])
                sums["dfl"] -= weight * likely / 4
        for k, logit in enumerate(a.logits):
            q = quality if k == a.label else 0.0
            sums["class"] += a.on_image * abs(q - sigmoid(logit)) ** 2 * cross_entropy(logit, q)
    number, normalizer = sum(max(n, 1) for n in positives_per_image(anchors)), max(sums["weight"], 1)
    return {
        "class": sums["class"] / number,
        "giou": 2 * sums["giou"] / normalizer,
        "dfl": 0.25 * sums["dfl"] / normalizer,
    }


def slow_paa(anchors: list) -> dict[str, float]:
    found = [a for a in anchors if a.box is not None]
    boxes = [decode(a.anchor, a.predicted, SMALL_STDS) for a in found]
    ious = [iou_of(box, a.box) for box, a in zip(boxes, found)]
    giou = sum(iou * (1 - giou_of(box, a.box)) for iou, box, a in zip(ious, boxes, found))
    return {
        "class": sum(focal(a.logits, a.label) for a in anchors if a.on_image) / max(len(found), len(SIZES)),
        "giou": 1.3 * giou / sum(ious),
        "iou": 0.5 * sum(cross_entropy(a.quality, iou) for iou, a in zip(ious, found)) / max(len(found), 1),
    }


def slow_retinanet(anchors: list, ignored: set[int]) -> dict[str, float]:
    found = [a for a in anchors if a.box is not None]
    number = sum(max(n, 1) for n in positives_per_image(anchors))
    counted = [a for i, a in enumerate(anchors) if a.on_image and i not in ignored]
    giou = sum(1 - giou_of(decode(a.anchor, a.predicted, UNIT_STDS), a.box) for a in found)
    return {"class": sum(focal(a.logits, a.label) for a in counted) / number, "giou": 2 * giou / number}


@pytest.mark.parametrize("counts", [(4, 3), (5, 0)])
@pytest.mark.parametrize(
    ("kind", "expected"), [(ATSSHead, slow_atss), (FCOSHead, slow_fcos), (GFLHead, slow_gfl), (PAAHead, slow_paa)]
)
def test_losses_are_those_of_a_loop_over_anchors(kind, expected, counts):
    """Two images of different sizes; an empty one counts as one positive, except for FCOS and PAA."""
    head, pyramid = make_head(kind), make_pyramid(SIZES)
    instances = [make_objects(size, count, seed=3) for size, count in zip(SIZES, counts)]
    output = head(pyramid, instances)
    anchors = list(all_anchors(head, pyramid, instances, output.samples.target_index))
    assert (output.samples.target_index >= 0).any() and not all(a.on_image for a in anchors)
    assert {name: loss.item() for name, loss in output.losses.items()} == pytest.approx(expected(anchors), rel=1e-4)


def test_retinanet_leaves_out_anchors_between_its_thresholds():
    """Not positive, but of an IoU of at least .4 with some object."""
    head, pyramid = make_head(RetinaNetHead), make_pyramid(SIZES)
    instances = [make_objects(size, 4, seed=3) for size in SIZES]
    output = head(pyramid, instances)
    anchors = list(all_anchors(head, pyramid, instances, output.samples.target_index))
    objects = [each.gt_boxes.tensor.tolist() for each in instances]
    ignored = {
        i for i, a in enumerate(anchors) if a.box is None and max(iou_of(a.anchor, b) for b in objects[a.image]) >= 0.4
    }
    assert any(anchors[i].on_image for i in ignored)
    losses = {name: loss.item() for name, loss in output.losses.items()}
    assert losses == pytest.approx(slow_retinanet(anchors, ignored), rel=1e-4)


WEIGHTS = {
    ATSSHead: {"class": 1, "giou": 2, "centerness": 1},
    RetinaNetHead: {"class": 1, "giou": 2},
    FCOSHead: {"class": 1, "giou": 1, "centerness": 1},
    GFLHead: {"class": 1, "giou": 2, "dfl": 0.25},
}


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.__name__)
def test_loss_weights_scale_their_own_loss_only(kind: type[nn.Module]):
    pyramid, instances = make_pyramid(SIZES), [make_objects(size, 3) for size in SIZES]
    factors = {name: 3.0 + i for i, name in enumerate(WEIGHTS[kind])}
    plain = make_head(kind)(pyramid, instances).losses
    overrides = {f"{name}_weight": factor * WEIGHTS[kind][name] for name, factor in factors.items()}
    weighted = make_head(kind, **overrides)(pyramid, instances).losses
    assert {name: (weighted[name] / plain[name]).item() for name in plain} == pytest.approx(factors, rel=1e-5)


def test_the_weight_of_paas_iou_scales_its_loss_only_and_chooses_nothing():
    """The other two weights also make the losses that positives are chosen by."""
    pyramid, instances = make_pyramid(SIZES), [make_objects(size, 3) for size in SIZES]
    plain = make_head(PAAHead)(pyramid, instances).losses
    weighted = make_head(PAAHead, iou_weight=1.0)(pyramid, instances).losses
    factors = {name: (weighted[name] / plain[name]).item() for name in plain}
    assert factors == pytest.approx({"class": 1, "giou": 1, "iou": 2}, rel=1e-5)


def test_paa_divides_the_class_loss_by_images_where_positives_are_fewer():
    """One positive in the first of two images: the class loss is a sum over all anchors on an image, divided by 2; the
    IoU's is divided by 1."""
    head, pyramid = make_head(PAAHead), make_pyramid(SIZES)
    head.assign = lambda anchors, predictions, image, boxes, labels: torch.cat(
        [torch.full((1,), -1 if image else 0), torch.full((len(anchors.of_image(image)) - 1,), -1)]
    )
    instances = [make_objects(size, 1, seed=3) for size in SIZES]
    output = head(pyramid, instances)
    anchors = list(all_anchors(head, pyramid, instances, output.samples.target_index))
    (positive,) = (a for a in anchors if a.box is not None)
    found = {name: loss.item() for name, loss in output.losses.items()}
    assert found["class"] == pytest.approx(sum(focal(a.logits, a.label) for a in anchors if a.on_image) / 2, rel=1e-4)
    iou = iou_of(decode(positive.anchor, positive.predicted, SMALL_STDS), positive.box)
    assert found["iou"] == pytest.approx(0.5 * cross_entropy(positive.quality, iou), rel=1e-4)


def test_paa_chooses_positives_by_what_it_predicts():
    """Other weights, same objects and anchors: other positives."""
    pyramid, instances = make_pyramid(SIZES), [make_objects(size, 5) for size in SIZES]
    chosen = [make_head(PAAHead, seed=seed)(pyramid, instances).samples.target_index for seed in (0, 1)]
    assert not chosen[0].equal(chosen[1])


def test_size_ranges_of_fcos_are_the_papers():
    expected = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
    assert size_ranges((8, 16, 32, 64, 128)) == expected
    assert size_ranges((4, 8, 16)) == [(-1, 32), (32, 64), (64, math.inf)]


def test_fcos_points_are_in_the_middle_of_cells_and_anchors_of_others_at_their_corner():
    pyramid = make_pyramid(SIZES)
    for kind, center in ((FCOSHead, 4), (ATSSHead, 0)):
        box = make_head(kind).place_anchors(pyramid).boxes[0]
        assert box.tolist() == [center - 32, center - 32, center + 32, center + 32]


def test_retinanet_anchors_go_ratio_by_ratio():
    """Of one cell of stride 8: sides of 32, 2^(1/3) 32 and 2^(2/3) 32 pixels, twice as wide as high at first."""
    boxes = make_head(RetinaNetHead).place_anchors(make_pyramid(SIZES)).boxes[:9]
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    sides = torch.tensor([32 * 2 ** (octave / 3) for octave in range(3)] * 3)
    assert torch.allclose((width * height).sqrt(), sides)
    assert torch.allclose(height / width, torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(3))
    assert torch.allclose(boxes[:, :2] + boxes[:, 2:], torch.zeros(9, 2), atol=1e-5)
