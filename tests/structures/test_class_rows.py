"""Rows of classes are found by what a part says of its tensors."""

import pytest
import torch

from dinox.structures import ClassRows, PlacedRows


@pytest.mark.parametrize(
    "layout, rows, classes",
    [
        (ClassRows(), 3, 3),
        (ClassRows(), 0, None),
        (ClassRows(others=1), 4, 3),
        (ClassRows(others=1), 1, None),
        (ClassRows(per_class=4), 12, 3),
        (ClassRows(per_class=4), 13, None),
        (ClassRows(blocks=9), 27, 3),
        (ClassRows(blocks=9), 28, None),
        (ClassRows(blocks=2, per_class=4, others=1), 26, 3),
    ],
)
def test_the_number_of_classes_follows_from_the_rows(layout, rows, classes):
    assert layout.num_classes(rows) == classes


def test_two_anchors_of_two_boxed_classes_and_background():
    """Theirs: classes a, b. Ours: c, b, a. Rows: two of each class, then one of background; twice."""
    layout = ClassRows(blocks=2, per_class=2, others=1)
    theirs = torch.tensor([10, 11, 20, 21, 99, 110, 111, 120, 121, 199.0])
    ours = -torch.arange(1, 15.0)
    expected = torch.tensor([-1, -2, 20, 21, 10, 11, 99, -8, -9, 120, 121, 110, 111, 199.0])
    before = ours.clone()
    assert torch.equal(layout.copy(theirs, ours, [None, 1, 0]), expected)
    assert torch.equal(ours, before)


def test_rows_take_the_type_of_the_model():
    copied = ClassRows().copy(torch.tensor([[0.5]], dtype=torch.float16), torch.zeros(2, 1), [None, 0])
    assert copied.dtype == torch.float32 and copied.flatten().tolist() == [0, 0.5]


def test_rows_by_place_go_as_far_as_both_have_them():
    theirs, ours = torch.arange(1, 4.0), torch.zeros(2)
    assert PlacedRows().copy(theirs, ours).tolist() == [1, 2]
    assert PlacedRows().copy(ours + 7, torch.zeros(3)).tolist() == [7, 7, 0]
