"""Losses of one-stage heads, anchor by anchor, in plain numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import nn

from dinox.structures import HeadPyramid
from tests.matching.test_atss import iou_of
from tests.modeling.auxiliary.scenes import EMBED_DIM, NUM_CLASSES, STRIDES


def make_head(kind: type[nn.Module], *, seed: int = 0, **overrides) -> nn.Module:
    """With weights away from their start, where all predictions are alike."""
    torch.manual_seed(seed)
    head = kind(**{"embed_dim": EMBED_DIM, "num_classes": NUM_CLASSES, "num_levels": len(STRIDES), **overrides})
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return head


@dataclass(frozen=True)
class Anchor:
    """One anchor of one image and all that is predicted for it; box and label are None in the background."""

    image: int
    stride: int
    cell: tuple[int, int]  # x, y
    anchor: list
    on_image: bool
    logits: list
    predicted: list
    quality: float | None
    box: list | None
    label: int | None


@torch.no_grad()
def all_anchors(
    head: nn.Module, pyramid: HeadPyramid, instances: Sequence[Instances], target_index: torch.Tensor
) -> Iterator[Anchor]:
    """Level by level, row by row, of each image; the anchors of a cell as ``head`` has them."""
    predictions = head.branches(pyramid)
    for image, (height, width) in enumerate(pyramid.image_sizes):
        objects, classes = instances[image].gt_boxes.tensor.tolist(), instances[image].gt_classes.tolist()
        place = 0
        for feature, stride in zip(pyramid.maps, pyramid.strides):
            for row in range(feature.shape[2]):
                for column in range(feature.shape[3]):
                    x, y = (column + head.anchor_offset) * stride, (row + head.anchor_offset) * stride
                    for cell_anchor in head.cell_anchors.tolist():
                        index = int(target_index[image, place])
                        yield Anchor(
                            image=image,
                            stride=stride,
                            cell=(column, row),
                            anchor=[c + stride * side for c, side in zip((x, y, x, y), cell_anchor)],
                            on_image=row < math.ceil(height / stride) and column < math.ceil(width / stride),
                            logits=predictions.logits[image, place].tolist(),
                            predicted=predictions.boxes[image, place].tolist(),
                            quality=None if predictions.quality is None else predictions.quality[image, place].item(),
                            box=objects[index] if index >= 0 else None,
                            label=classes[index] if index >= 0 else None,
                        )
                        place += 1


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def cross_entropy(logit: float, target: float) -> float:
    return -(target * math.log(sigmoid(logit)) + (1 - target) * math.log(1 - sigmoid(logit)))


def focal(logits: list, label: int | None) -> float:
    """Of all classes of one anchor: alpha .25, gamma 2."""
    loss = 0.0
    for k, logit in enumerate(logits):
        factor = 0.25 * (1 - sigmoid(logit)) ** 2 if k == label else 0.75 * sigmoid(logit) ** 2
        loss += factor * cross_entropy(logit, float(k == label))
    return loss


def giou_of(a: list, b: list) -> float:
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    iou = iou_of(a, b)
    union = sum(area) / (1 + iou)
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou - (enclosing - union) / enclosing


def decode(anchor: list, deltas: list, stds: Sequence[float]) -> list:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + stds[0] * deltas[0] * width
    y = (anchor[1] + anchor[3]) / 2 + stds[1] * deltas[1] * height
    width, height = width * math.exp(stds[2] * deltas[2]), height * math.exp(stds[3] * deltas[3])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def centerness_of(x: float, y: float, box: list) -> float:
    across, down = sorted([x - box[0], box[2] - x]), sorted([y - box[1], box[3] - y])
    return math.sqrt(across[0] / across[1] * down[0] / down[1])


def positives_per_image(anchors: Sequence[Anchor]) -> list[int]:
    return [sum(a.box is not None for a in anchors if a.image == i) for i in {a.image for a in anchors}]
