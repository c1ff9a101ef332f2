import torch
import torchvision

from dinox.structures import box_iou, cxcywh_to_xyxy, generalized_box_iou, inverse_sigmoid, xyxy_to_cxcywh


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
    assert torch.isfinite(generalized_box_iou(zero, zero)).all()


def test_inverse_sigmoid_saturates():
    logits = inverse_sigmoid(torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0]))
    torch.testing.assert_close(logits, torch.tensor([-6.9078, 0.0, 6.9078, 6.9078, -6.9078]), atol=1e-4, rtol=0)
