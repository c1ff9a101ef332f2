"""The ATSS head: its losses against a loop over anchors."""

import math

import pytest
import torch
from detectron2.structures import Instances

from dinox.modeling.auxiliary import ATSSHead
from dinox.structures import HeadPyramid
from tests.matching.test_atss import iou_of
from tests.modeling.auxiliary.scenes import EMBED_DIM, NUM_CLASSES, STRIDES, make_objects, make_pyramid

SIZES = ((64, 90), (50, 60))


def make_head(*, seed: int = 0, **overrides) -> ATSSHead:
    torch.manual_seed(seed)
    settings = {"embed_dim": EMBED_DIM, "num_classes": NUM_CLASSES, "num_levels": len(STRIDES), **overrides}
    head = ATSSHead(**settings)
    for parameter in head.parameters():  # away from the start, where all predictions are alike
        parameter.data += 0.1 * torch.randn_like(parameter)
    return head


def cross_entropy(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -(target * math.log(probability) + (1 - target) * math.log(1 - probability))


def giou_of(a: list, b: list) -> float:
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    iou = iou_of(a, b)
    union = sum(area) / (1 + iou)
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou - (enclosing - union) / enclosing


def decode(anchor: list, delta: list) -> list:
    """mmdetection's deltas with standard deviations .1, .1, .2, .2."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + 0.1 * delta[0] * width
    y = (anchor[1] + anchor[3]) / 2 + 0.1 * delta[1] * height
    width, height = width * math.exp(0.2 * delta[2]), height * math.exp(0.2 * delta[3])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def slow_losses(head: ATSSHead, pyramid: HeadPyramid, instances: list[Instances], target_index: torch.Tensor) -> dict:
    """Of what the head predicts and what anchors are assigned to, anchor by anchor."""
    with torch.no_grad():
        predictions = head.branches(pyramid)
    sums = {"class": 0.0, "giou": 0.0, "centerness": 0.0}
    num_positives = sum_of_centerness = 0
    for image, (height, width) in enumerate(pyramid.image_sizes):
        objects, classes = instances[image].gt_boxes.tensor.tolist(), instances[image].gt_classes.tolist()
        positives_of_image, place = 0, 0
        for feature, stride in zip(pyramid.maps, pyramid.strides):
            for row in range(feature.shape[2]):
                for column in range(feature.shape[3]):
                    index, this = int(target_index[image, place]), (image, place)
                    place += 1
                    if row >= math.ceil(height / stride) or column >= math.ceil(width / stride):
                        assert index == -1
                        continue
                    for k, logit in enumerate(predictions.logits[this].tolist()):
                        present = index >= 0 and classes[index] == k
                        probability = 1 / (1 + math.exp(-logit))
                        factor = 0.25 * (1 - probability) ** 2 if present else 0.75 * probability**2
                        sums["class"] += factor * cross_entropy(logit, float(present))
                    if index < 0:
                        continue
                    positives_of_image += 1
                    x, y, box = column * stride, row * stride, objects[index]
                    across, down = sorted([x - box[0], box[2] - x]), sorted([y - box[1], box[3] - y])
                    wanted = math.sqrt(across[0] / across[1] * down[0] / down[1])
                    sum_of_centerness += wanted
                    anchor = [x - 4 * stride, y - 4 * stride, x + 4 * stride, y + 4 * stride]
                    sums["giou"] += wanted * (1 - giou_of(decode(anchor, predictions.boxes[this].tolist()), box))
                    sums["centerness"] += cross_entropy(float(predictions.quality[this]), wanted)
        num_positives += max(positives_of_image, 1)
    return {
        "class": sums["class"] / num_positives,
        "giou": 2 * sums["giou"] / max(sum_of_centerness, 1),
        "centerness": sums["centerness"] / num_positives,
    }


@pytest.mark.parametrize("counts", [(4, 3), (5, 0)])
def test_losses_are_those_of_a_loop_over_anchors(counts):
    """Two images of different sizes; one may be empty, and then counts as one positive. float32 sums: rel 1e-4."""
    head, pyramid = make_head(), make_pyramid(SIZES)
    instances = [make_objects(size, count, seed=3) for size, count in zip(SIZES, counts)]
    output = head(pyramid, instances)
    expected = slow_losses(head, pyramid, instances, output.samples.target_index)
    assert (output.samples.target_index >= 0).any()
    assert {name: loss.item() for name, loss in output.losses.items()} == pytest.approx(expected, rel=1e-4)


def test_loss_weights_scale_their_own_loss_only():
    pyramid, instances = make_pyramid(SIZES), [make_objects(size, 3) for size in SIZES]
    plain = make_head()(pyramid, instances).losses
    weighted = make_head(class_weight=3.0, giou_weight=10.0, centerness_weight=7.0)(pyramid, instances).losses
    factors = {name: (weighted[name] / plain[name]).item() for name in plain}
    assert factors == pytest.approx({"class": 3, "giou": 5, "centerness": 7}, rel=1e-5)
