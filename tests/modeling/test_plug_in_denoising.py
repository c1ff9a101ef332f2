"""Denoising in a detector that has nothing else of dinox."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from dinox.modeling import Denoising

CLASSES, WIDTH, QUERIES = 3, 32, 8


class OtherDetector(nn.Module):
    """DETR-like: a convolution, a transformer decoder, boxes as offsets to learned anchors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.place = nn.Linear(4, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.class_head, self.box_head = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)
        self.content, self.anchors = nn.Parameter(torch.zeros(QUERIES, WIDTH)), nn.Parameter(torch.randn(QUERIES, 4))
        self.denoising = Denoising(num_classes=CLASSES, embed_dim=WIDTH)

    def losses(self, images, labels, boxes):
        memory = self.stem(images).flatten(2).transpose(1, 2)
        content, anchors = (each.expand(len(images), -1, -1) for each in (self.content, self.anchors.sigmoid()))
        queries = self.denoising(labels, boxes, content, anchors)
        states = self.decoder(queries.content + self.place(queries.anchors), memory, tgt_mask=queries.blocked)
        logits = self.class_head(states)
        predicted = (self.box_head(states) + queries.anchors.logit(eps=1e-3)).sigmoid()
        own = self.match(queries.split(logits)[1], queries.split(predicted)[1], labels, boxes)
        return {"loss_own": own, **self.denoising.losses(queries, logits, predicted)}

    def match(self, logits, predicted, labels, boxes):
        total = 0.0 * logits.sum()
        for own_logits, own_boxes, label, box in zip(logits, predicted, labels, boxes, strict=True):
            cost = torch.cdist(own_boxes, box, p=1) - own_logits.sigmoid()[:, label]
            rows, columns = linear_sum_assignment(cost.detach().numpy())
            wanted = torch.zeros_like(own_logits)
            wanted[rows, label[columns]] = 1.0
            total = total + nn.functional.binary_cross_entropy_with_logits(own_logits, wanted, reduction="sum")
            total = total + 5 * (own_boxes[rows] - box[columns]).abs().sum()
        return total / max(sum(map(len, labels)), 1)


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    boxes = [torch.rand(count, 4, generator=generator) * 0.3 + 0.3 for count in (3, 1)]
    return images, [torch.tensor([0, 1, 2]), torch.tensor([1])], boxes


def test_the_loss_of_another_detector_falls():
    torch.manual_seed(0)
    model = OtherDetector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(50):
        losses = model.losses(*batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        own = losses.pop("loss_own").item()
        history.append((own, sum(value.item() for value in losses.values())))
    first, last = (torch.tensor(part).mean(0) for part in (history[:5], history[-5:]))  # own loss, denoising
    assert (last < 0.8 * first).all(), (first, last)


def test_the_detectors_own_queries_see_nothing_of_the_noised_objects():
    torch.manual_seed(0)
    model = OtherDetector()
    images, labels, boxes = batch()
    own = [model.losses(images, labels, boxes)["loss_own"] for _ in range(2)]  # other noise each time
    assert torch.equal(*own)


def test_batches_without_objects_leave_gradients_everywhere():
    model = OtherDetector()
    losses = model.losses(torch.rand(2, 3, 32, 32), [torch.zeros(0, dtype=torch.int64)] * 2, [torch.zeros(0, 4)] * 2)
    sum(losses.values()).backward()
    assert [value.item() for key, value in losses.items() if key.endswith("_dn")] == [0.0, 0.0, 0.0]
    assert all(parameter.grad is not None for parameter in model.denoising.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center_shift": -0.1}, "center_shift must lie in"),
        ({"scale": 1.5}, "scale must lie in"),
        ({"flip_probability": 2}, "flip_probability must lie in"),
        ({"weights": {"class": 1.0}}, "loss weights are needed"),
        ({"num_groups": 0}, "num_groups"),
    ],
)
def test_impossible_settings_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Denoising(num_classes=CLASSES, embed_dim=WIDTH, **options)


def test_losses_of_each_layer_are_those_of_the_criterion_by_hand():
    """One object, one group, no noise: the denoising query holds the object, and predicts boxes that are off by 0.1."""
    denoising = Denoising(num_classes=2, embed_dim=4, num_groups=1, center_shift=0.0, scale=0.0, flip_probability=0.0)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    queries = denoising([torch.tensor([1])], [box], torch.zeros(1, 3, 4), torch.full((1, 3, 4), 0.5))
    assert queries.size == 1
    torch.testing.assert_close(queries.anchors[0, :1], box)
    predicted = torch.full((2, 1, 4, 4), 0.5)  # two layers, one image, one denoising query before three others
    predicted[:, 0, 0] = torch.tensor([0.6, 0.5, 0.2, 0.2])
    losses = denoising.losses(queries, torch.zeros(2, 1, 4, 2), predicted)
    assert set(losses) == {f"loss_{name}_dn{layer}" for name in ("class", "bbox", "giou") for layer in ("", "_0")}
    assert losses["loss_bbox_dn_0"].item() == pytest.approx(5 * 0.1)
    assert losses["loss_class_dn"].item() == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2))
    # The boxes overlap by half: IoU 1/3, and the enclosing box is the union.
    assert losses["loss_giou_dn"].item() == pytest.approx(2 * (1 - 1 / 3), rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "boxes", "message"),
    [
        ([[3]], [[[0.5, 0.5, 0.1, 0.1]]], r"labels\[0\]: expected 0 <= label < 3, got 3"),
        ([[0]], [[[50.0, 50.0, 10.0, 10.0]]], r"boxes\[0\]: .* divide pixels by the image's size"),
        ([[0]], [[[float("nan"), 0.5, 0.1, 0.1]]], r"boxes\[0\]: expected"),
        ([[0, 1]], [[[0.5, 0.5, 0.1, 0.1]]], r"boxes\[0\]: expected shape \(2, 4\), got \(1, 4\)"),
        ([[0], [0]], [[[0.5, 0.5, 0.1, 0.1]]], "expected labels and boxes of each of the 1 images, got 2 and 1"),
    ],
)
def test_objects_that_cannot_be_are_errors(labels, boxes, message):
    denoising = Denoising(num_classes=CLASSES, embed_dim=4)
    with pytest.raises(ValueError, match=message):
        denoising(
            [torch.tensor(each) for each in labels],
            [torch.tensor(each) for each in boxes],
            torch.zeros(1, 2, 4),
            torch.full((1, 2, 4), 0.5),
        )
