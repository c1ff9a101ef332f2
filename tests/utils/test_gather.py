import torch

from dinox.utils.gather import gather_rows


def test_rows_are_picked_from_their_own_image_in_any_order_and_with_gradient():
    values = torch.arange(12.0).view(2, 3, 2).requires_grad_()
    picked = gather_rows(values, torch.tensor([[2, 0], [1, 1]]))
    assert picked.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    picked.sum().backward()
    assert values.grad[..., 0].tolist() == [[1, 0, 1], [0, 2, 0]]
