import pytest
import torch
import torchvision

from dinox.structures import (
    box_iou,
    clamped_box_iou,
    cxcywh_to_xyxy,
    exact_generalized_box_iou,
    generalized_box_iou,
    inverse_sigmoid,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) + 0.1], dim=1)


def test_formats_convert_back_and_forth():
    boxes = random_boxes(10, 0)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_iou_and_giou_are_torchvisions():
    """Up to the 1e-6 in the denominators."""
    a, b = random_boxes(10, 0), random_boxes(7, 1)
    torch.testing.assert_close(box_iou(a[:, None], b)[0], torchvision.ops.box_iou(a, b), atol=1e-4, rtol=0)
    giou = torchvision.ops.generalized_box_iou(a, b)
    torch.testing.assert_close(generalized_box_iou(a[:, None], b), giou, atol=1e-4, rtol=0)


def test_degenerate_boxes_have_finite_iou():
    zero = torch.zeros(1, 4)
    for iou in (clamped_box_iou, generalized_box_iou, exact_generalized_box_iou):
        boxes = zero.clone().requires_grad_()
        iou(boxes, zero).sum().backward()
        assert iou(zero, zero).item() == 0
        assert torch.isfinite(boxes.grad).all()


def test_inverse_sigmoid_saturates():
    logits = inverse_sigmoid(torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0]))
    torch.testing.assert_close(logits, torch.tensor([-6.9078, 0.0, 6.9078, 6.9078, -6.9078]), atol=1e-4, rtol=0)


# A box of 4 x 4 pixels in an image of 800 x 800, and the same one, 1 pixel to the right: 12 of 20 pixels, and enclosed
# by these. Areas are 2.5e-5 and so on: what is added to them shows.
SMALL = torch.tensor([0.0, 0.0, 4.0, 4.0]) / 800
BESIDE = torch.tensor([1.0, 0.0, 5.0, 4.0]) / 800


def test_small_boxes_have_their_exact_iou_only_where_nothing_is_added_to_areas():
    """12 / 20; with 1e-6, which is 0.64 pixels, in the denominator 12 / 20.64. Float32: 1e-5."""
    assert clamped_box_iou(SMALL, BESIDE).item() == pytest.approx(12 / 20, abs=1e-5)
    assert box_iou(SMALL, BESIDE)[0].item() == pytest.approx(12 / 20.64, abs=1e-5)


def test_the_clamped_iou_of_the_smallest_boxes_has_1e_6_for_their_union():
    """Of half a pixel: 0.25 / 640000 against 1e-6."""
    box = torch.tensor([0.0, 0.0, 0.5, 0.5]) / 800
    assert clamped_box_iou(box, box).item() == pytest.approx(0.25 / 0.64, abs=1e-5)


@pytest.mark.parametrize("unit", [1.0, 800.0])
def test_the_exact_giou_does_not_depend_on_the_unit(unit):
    """A gap of 4 pixels: IoU 0, 32 of 48 pixels are covered; 12 / 20 where nothing else is enclosed; 1 of equal
    boxes of half a pixel."""
    apart = torch.tensor([8.0, 0.0, 12.0, 4.0]) / 800
    half = torch.tensor([0.0, 0.0, 0.5, 0.5]) / 800
    boxes1, boxes2 = torch.stack([SMALL, SMALL, half]), torch.stack([apart, BESIDE, half])
    found = exact_generalized_box_iou(boxes1 * unit, boxes2 * unit).tolist()
    assert found == pytest.approx([-1 / 3, 12 / 20, 1.0], abs=1e-5)
    assert generalized_box_iou(SMALL, BESIDE).item() != pytest.approx(12 / 20, abs=1e-3)
