import pytest
import torch
from torch.nn import functional as F

from dinox.structures import FeaturePyramid
from dinox.structures.memory import count_valid_cells


@pytest.mark.parametrize(
    ("valid", "padded", "cells"), [(50, 64, 8), (64, 64, 8), (1, 64, 2), (333, 400, 13), (799, 1333, 42)]
)
def test_valid_cells_are_those_of_the_resized_pixel_mask(valid, padded, cells):
    mask = (torch.arange(padded) < valid).float()
    resized = F.interpolate(mask[None, None, None], size=(1, cells), mode="nearest")
    assert count_valid_cells(torch.tensor([valid]), padded, cells).item() == int(resized.sum())


def test_padding_masks_mark_all_beyond_the_valid_size():
    pyramid = FeaturePyramid([torch.zeros(2, 1, 2, 3)], [[(2, 3)], [(1, 2)]])
    (mask,) = pyramid.padding_masks(pyramid.sizes()[0])
    assert pyramid.token_counts == (6, 2)
    assert mask.int().tolist() == [[[0, 0, 0], [0, 0, 0]], [[0, 0, 1], [1, 1, 1]]]
